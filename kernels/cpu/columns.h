// Made of fastddpm/rows.py by kernels/columns.py: what a row of coefficients holds, in its order.
#pragma once

namespace fastddpm {

template <class T> struct NoisingRow { T a, s; };
template <class T> struct MseRow { T p, q, r, w; };
template <class T> struct VlbRow { T a, s, p_x, p_o, bound, c, e_0, e_x, e_o, v_0, v_1, precision, p, q, r, w; };
template <class T> struct StepRow { T p_x, p_o, bound, k_x, k_0, k_o, k_h1, k_h2, k_h3, sigma, k_v, g, c_x, c_0, unused[2]; };
template <class T> struct AdamWRow { T lr, beta_1, beta_2, eps, weight_decay, sign, unused[2]; };

}  // namespace fastddpm
