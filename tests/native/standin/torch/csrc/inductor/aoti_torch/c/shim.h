#pragma once
#include "../../../stable/tensor.h"
