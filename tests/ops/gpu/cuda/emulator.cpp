// Runs one launch of FUNCTION of SOURCE, which takes ARGUMENTS, on the CPU.
#define EMULATED
#include SOURCE

static const ARGUMENTS *arguments;

static void fiber() {
  FUNCTION(*arguments);
  emulator::lanes[emulator::current].state = emulator::DONE;
  emulator::switch_away();
}

// The blocks of a launch, one after the other. Returns what went wrong, or nothing. counts: products,
// loads of matrices, cycles of their banks, barriers, results that were computed anew.
extern "C" const char *run(const void *p, size_t size, int grid, int threads, size_t shared,
                           int fill, const emulator::Array *arrays, int count, long *counts) {
  using namespace emulator;
  if (size != sizeof(ARGUMENTS)) return "the arguments have another size";
  arguments = (const ARGUMENTS *)p;
  emulator::threads = threads;
  emulator::fill = fill;
  emulator::arrays.assign(arrays, arrays + count);
  written.clear();
  for (auto &a : emulator::arrays)
    written.emplace_back(a.writable ? (a.bytes / 2 + 31) / 32 : 0, 0u);
  counted = {0, 0, 0, 0, 0};
  const size_t stack = 1 << 16;
  std::vector<char> stacks(stack * threads);
  std::vector<ucontext_t> contexts(threads);
  static ucontext_t away;
  for (block = 0; block < grid; ++block) {
    memory.assign(shared, fill);
    words.assign(shared / 4 + 1, Word());
    lanes.assign(threads, Lane());
    arrived.assign(threads / 32, 0);
    interval = blocked = 0;
    for (int t = 0; t < threads; ++t) {
      lanes[t].state = READY;
      getcontext(&contexts[t]);
      contexts[t].uc_stack.ss_sp = &stacks[t * stack];
      contexts[t].uc_stack.ss_size = stack;
      contexts[t].uc_link = nullptr;
      makecontext(&contexts[t], [] {
        if (!_setjmp(lanes[current].here)) setcontext(&away);
        fiber();
      }, 0);
      // As far as its first line, so that all further switches are jumps.
      current = t;
      volatile bool back = false;
      getcontext(&away);
      if (!back) {
        back = true;
        setcontext(&contexts[t]);
      }
    }
    const int how = _setjmp(outside);
    if (how == 1) return message;
    if (how == 0) {
      current = 0;
      _longjmp(lanes[0].here, 1);
    }
    for (auto &l : lanes)
      if (!l.groups.empty() || !l.open.empty())
        for (auto &g : l.groups)
          if (!g.empty()) return "copies that nobody has waited for";
  }
  counts[0] = counted.products;
  counts[1] = counted.matrices;
  counts[2] = counted.cycles;
  counts[3] = counted.barriers;
  counts[4] = counted.plain_sums;
  return "";
}
