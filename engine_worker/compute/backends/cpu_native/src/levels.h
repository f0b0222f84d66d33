// The instruction levels that this library was compiled for.
#pragma once

#include "calls.h"

namespace penstock {

// The best level first; ends with null. The last one runs everywhere.
const Level* const* compiled_levels();

// The level that calls use: the best one that this processor has, or the one that was chosen.
const Level& current_level();

// Chooses by name; false if it isn't there or the processor lacks it.
bool choose_level(const char* name);

}  // namespace penstock
