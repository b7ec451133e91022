/* Runs kernels on operands from a stream, each in heap memory of its own and of exactly its size, so that the address
 * sanitizer sees every access outside of it.
 *
 * stdin, all int64: which, threads, scratch bytes, then counts of dims, operands, results and sessions; the dims; for
 * each operand its size and bytes; for each result its size; for each session its size and bytes. stdout: the bytes of
 * the results, then of the sessions. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 16 };

int call(int which, void *const *operands, void *const *results, const int32_t *dims, void *scratch, int32_t threads,
         char *const *sessions, int32_t session_count);

static int64_t number(void) {
  int64_t found;
  if (fread(&found, sizeof found, 1, stdin) != 1) exit(2);
  return found;
}

/* Memory that holds NaNs, or `filled`, the bytes that follow in the stream. */
static void *take(int64_t size, int filled) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, (size_t)size)) exit(3);
  if (!filled) memset(memory, 0xFF, (size_t)size);
  else if (fread(memory, 1, (size_t)size, stdin) != (size_t)size) exit(2);
  return memory;
}

static void take_all(int64_t count, void **memory, int64_t *sizes, int filled) {
  if (count > MOST) exit(2);
  for (int64_t i = 0; i < count; i++) sizes[i] = number(), memory[i] = take(sizes[i], filled);
}

static void give_all(int64_t count, void **memory, const int64_t *sizes, int write) {
  for (int64_t i = 0; i < count; i++) {
    if (write && fwrite(memory[i], 1, (size_t)sizes[i], stdout) != (size_t)sizes[i]) exit(4);
    free(memory[i]);
  }
}

int main(void) {
  int64_t which;
  while (fread(&which, sizeof which, 1, stdin) == 1) {
    const int64_t threads = number(), scratch_bytes = number();
    int64_t counts[4], sizes[3][MOST];
    void *memory[3][MOST];
    int32_t dims[MOST];
    for (int i = 0; i < 4; i++) counts[i] = number();
    for (int64_t i = 0; i < counts[0]; i++) dims[i] = (int32_t)number();
    for (int i = 0; i < 3; i++) take_all(counts[i + 1], memory[i], sizes[i], i != 1);
    void *scratch = take(scratch_bytes, 0);
    char *sessions[MOST];
    for (int64_t i = 0; i < counts[3]; i++) sessions[i] = memory[2][i];
    if (call((int)which, memory[0], memory[1], dims, scratch, (int32_t)threads, sessions, (int32_t)counts[3])) return 1;
    free(scratch);
    for (int i = 0; i < 3; i++) give_all(counts[i + 1], memory[i], sizes[i], i != 0);
  }
  return 0;
}
