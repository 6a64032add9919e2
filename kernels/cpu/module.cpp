// The Python module: which kernels were chosen, and what may be asked of the memory of large results.
#include <Python.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>

#include "generator.h"
#include "library.h"

namespace fastddpm {
namespace {

// The fastest set that runs here, or the one that FASTDDPM_ISA names. Null, with a Python error, where that one does not run.
const Kernels* choose_kernels() {
  const char* wanted = std::getenv("FASTDDPM_ISA");
  for (const Kernels* k : kInstructionSets)
    if (k->runs_here() && (!wanted || !*wanted || std::strcmp(wanted, k->name) == 0)) return k;
  PyErr_Format(PyExc_ImportError, "FASTDDPM_ISA: expected avx512, avx2, neon or portable, and one that this CPU runs, got %s", wanted);
  return nullptr;
}

PyObject* names_of_those_that_run() {
  PyObject* names = PyList_New(0);
  for (const Kernels* k : kInstructionSets) {
    if (!k->runs_here()) continue;
    PyObject* name = PyUnicode_FromString(k->name);
    PyList_Append(names, name);
    Py_DECREF(name);
  }
  PyObject* tuple = PyList_AsTuple(names);
  Py_DECREF(names);
  return tuple;
}

// FASTDDPM_KEEP_BLOCKS=0: no result lies in pages, so no block is ever kept.
void choose_allocator() {
  const char* keep = std::getenv("FASTDDPM_KEEP_BLOCKS");
  if (keep && std::strcmp(keep, "0") == 0) thresholds.pages = INT64_MAX;
}

PyObject* empty_cache(PyObject*, PyObject*) { return PyLong_FromSize_t(pages().release()); }

PyObject* kept_blocks(PyObject*, PyObject*) {
  const auto [count, bytes] = pages().kept();
  return Py_BuildValue("in", count, Py_ssize_t(bytes));
}

PyObject* set_thresholds(PyObject*, PyObject* args) {
  long long now[2];
  if (!PyArg_ParseTuple(args, "LL:set_thresholds", &now[0], &now[1])) return nullptr;
  return Py_BuildValue("LL", (long long)thresholds.pages.exchange(now[0]), (long long)thresholds.streamed.exchange(now[1]));
}

struct Release {
  void operator()(PyObject* x) const { Py_DECREF(x); }
};
using Object = std::unique_ptr<PyObject, Release>;

struct WithoutGil {
  PyThreadState* thread = PyEval_SaveThread();
  ~WithoutGil() { PyEval_RestoreThread(thread); }
};

// torch's get_state makes its result under the generator's mutex. A collection there would run finalizers, which may let go of the
// GIL: a thread that then draws would wait for the mutex with the GIL, and this one for the GIL with the mutex.
struct WithoutCollection {
  const int was_enabled = PyGC_Disable();
  ~WithoutCollection() {
    if (was_enabled) PyGC_Enable();
  }
};

// A generator's state, and where its bytes lie.
struct State {
  Object tensor;
  StoredState* bytes = nullptr;

  explicit State(PyObject* generator) : tensor(PyObject_CallMethod(generator, "get_state", nullptr)) {
    const Object address(tensor ? PyObject_CallMethod(tensor.get(), "data_ptr", nullptr) : nullptr);
    if (address) bytes = static_cast<StoredState*>(PyLong_AsVoidPtr(address.get()));
  }
  explicit operator bool() const { return bytes; }
};

// The GIL is held from a state's last look to its being set: no thread of Python's draws in between. One that is inside of an op
// of torch's, where the GIL is not held, may: then the state is another at that look, but for the microsecond behind it.
std::optional<TorchNormals> drawn(PyObject* generator, int64_t count) {
  while (true) {
    const WithoutCollection the_gil_stays;
    State state(generator);
    if (!state) return {};
    const StoredState before = *state.bytes;
    std::optional<TorchNormals> normals(std::in_place, *state.bytes, count);
    const State now(generator);
    if (!now) return {};
    if (std::memcmp(&before, now.bytes, sizeof(before)) != 0) continue;
    if (!Object(PyObject_CallMethod(generator, "set_state", "O", state.tensor.get()))) return {};
    return normals;
  }
}

PyObject* torch_normals(PyObject*, PyObject* args) {
  PyObject* generator;
  unsigned long long address;
  long long count;
  if (!PyArg_ParseTuple(args, "OKL:torch_normals", &generator, &address, &count)) return nullptr;
  if (count < 16) return PyErr_Format(PyExc_ValueError, "count: expected 16 or more, got %lld", count);
  try {
    auto normals = drawn(generator, count);
    if (!normals) return nullptr;
    if (address) {
      const WithoutGil other_threads_may_run;
      normals->make(reinterpret_cast<float*>(address));
    }
  } catch (const std::exception& error) {
    return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
  }
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"empty_cache", empty_cache, METH_NOARGS, "Gives the memory kept for large results back to the system; returns its bytes."},
    {"kept_blocks", kept_blocks, METH_NOARGS, "How many blocks of memory are kept for large results, and their bytes."},
    {"set_thresholds", set_thresholds, METH_VARARGS,
     "For tests. Sets the bytes of a result from which on it lies in pages that are kept, and from which on it is written past\n"
     "the caches; returns the former two."},
    {"torch_normals", torch_normals, METH_VARARGS,
     "(generator, address, count): 16 or more float32 normals into memory, as torch draws them from its generator on a CPU, whose\n"
     "state is taken to be 5056 bytes; at address 0 the generator goes as far and none are made."},
    {nullptr, nullptr, 0, nullptr}};

#if defined(__clang__)
#define FASTDDPM_COMPILER "clang " __clang_version__
#else
#define FASTDDPM_COMPILER "gcc " __VERSION__
#endif

}  // namespace
}  // namespace fastddpm

PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "fastddpm's kernels for CPUs", -1, fastddpm::methods, nullptr, nullptr, nullptr, nullptr};
  fastddpm::choose_allocator();
  fastddpm::unwanted();
  fastddpm::kernels = fastddpm::choose_kernels();
  if (!fastddpm::kernels) return nullptr;
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
  PyModule_AddStringConstant(module, "isa", fastddpm::kernels->name);
  PyModule_AddObject(module, "isas", fastddpm::names_of_those_that_run());
  PyModule_AddStringConstant(module, "compiler", FASTDDPM_COMPILER);
  return module;
}
