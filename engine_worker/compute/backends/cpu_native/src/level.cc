// Everything that depends on the instruction level. Compiled once a level, with that level's options
// and its name in PENSTOCK_LEVEL; see setup.py.
//
// All of it lives in a namespace of the level's own, so that no function compiled for a newer
// processor can stand in for one of an older level when the library is linked.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <deque>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "calls.h"
#include "memory.h"
#include "thread_pool.h"

namespace penstock {
namespace PENSTOCK_LEVEL {
namespace {

#include "vector.h"
#include "dot_products.h"
#include "linear.h"
#include "query_tiles.h"
#include "cache_pages.h"
#include "attention.h"
#include "mlp.h"
#include "blocks.h"
#include "head.h"
#include "experts.h"
#include "by_head.h"
#include "recurrent.h"

}  // namespace

#define PENSTOCK_TEXT_OF(x) #x
#define PENSTOCK_TEXT(x) PENSTOCK_TEXT_OF(x)
extern const Level kLevel;
const Level kLevel = {PENSTOCK_TEXT(PENSTOCK_LEVEL), run_blocks, run_latent, run_by_head,
                      run_experts, run_head, run_embedding, run_recurrent};

}  // namespace PENSTOCK_LEVEL
}  // namespace penstock
