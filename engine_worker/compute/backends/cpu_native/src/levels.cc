#include "levels.h"

#include <atomic>
#include <cstring>
#include <string_view>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace penstock {

// PENSTOCK_LEVELS is the list of those that the build compiled, best first: LEVEL(avx2) LEVEL(generic)
#define LEVEL(name)           \
  namespace name {            \
  extern const Level kLevel;  \
  }
PENSTOCK_LEVELS
#undef LEVEL

namespace {

#define LEVEL(name) &name::kLevel,
const Level* const kLevels[] = {PENSTOCK_LEVELS nullptr};
#undef LEVEL

// Whether this processor, and the system on it, has what setup.py compiles a level for.
bool is_supported(std::string_view level) {
  if (level == "generic") return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return false;
  if (level == "avx2") return true;
  if (level == "avx2_vnni") {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 4)) != 0;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return false;
  }
  if (level == "avx512") return true;
  if (!__builtin_cpu_supports("avx512vnni")) return false;
  return level == "avx512_vnni" ||
         (level == "avx512_bf16" && __builtin_cpu_supports("avx512bf16"));
#else
  return false;
#endif
}

const Level* best_level() {
  const Level* const* level = kLevels;
  while (level[1] != nullptr && !is_supported((*level)->name)) level++;
  return *level;
}

std::atomic<const Level*>& chosen_level() {
  static std::atomic<const Level*> chosen{best_level()};
  return chosen;
}

}  // namespace

const Level* const* compiled_levels() { return kLevels; }

const Level& current_level() { return *chosen_level().load(); }

bool choose_level(const char* name) {
  for (const Level* const* level = kLevels; *level != nullptr; level++) {
    if (std::strcmp((*level)->name, name) == 0 && is_supported(name)) {
      chosen_level().store(*level);
      return true;
    }
  }
  return false;
}

}  // namespace penstock
