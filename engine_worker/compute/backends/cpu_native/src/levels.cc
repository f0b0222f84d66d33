#include "levels.h"

#include <atomic>
#include <cstring>
#include <string_view>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
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

#if defined(__x86_64__)
// Whether the processor has AMX and the system lets this process use its registers, which it has to
// be asked for (Documentation/arch/x86/xstate.rst of Linux).
bool has_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  unsigned a = 0, b = 0, c = 0, d = 0;
  const unsigned wanted = 1u << 22 | 1u << 24 | 1u << 25;  // bf16, tiles, int8
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & wanted) != wanted) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

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
  if (level == "avx512_vnni") return true;
  if (!__builtin_cpu_supports("avx512bf16")) return false;
  return level == "avx512_bf16" || (level == "amx" && has_amx());
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
