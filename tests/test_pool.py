"""The thread pool: every index once, worker numbers apart, no deadlock, and no work while idle."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

RUNTIME = Path(__file__).resolve().parent.parent / "runtime" / "c"

PROGRAM = r"""
#define _POSIX_C_SOURCE 200809L
#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "parallel.h"

enum { MOST = 5000 };

typedef struct job {
  atomic_int *touched;  /* times that each index was done */
  atomic_int *busy;     /* whether a worker number is in use */
  atomic_int *failures;
  int32_t count, grain, threads;
} job;

/* By arithmetic: fegetround asks the x87 unit, and kernels use another. */
static int rounds_to_nearest(void) {
  volatile float one = 1.0f, tiny = 1e-9f;
  return one + tiny == one && -one - tiny == -one;
}

static void body(const void *args, int32_t begin, int32_t end, int32_t worker) {
  const job *j = args;
  const bool shared = j->count > j->grain && j->threads > 1;
  if (begin < 0 || end > j->count || begin >= end) atomic_fetch_add(j->failures, 1);
  if (shared && (begin % j->grain || end - begin > j->grain)) atomic_fetch_add(j->failures, 1);
  if (worker < 0 || worker >= j->threads) atomic_fetch_add(j->failures, 1);
  if (atomic_fetch_add(&j->busy[worker], 1)) atomic_fetch_add(j->failures, 1);
  if (!rounds_to_nearest()) atomic_fetch_add(j->failures, 1);
  for (int32_t i = begin; i < end; i++) atomic_fetch_add(&j->touched[i], 1);
  atomic_fetch_sub(&j->busy[worker], 1);
}

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void rest(long milliseconds) {
  const struct timespec t = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  nanosleep(&t, NULL);
}

/* threads regions pause_every: regions of changing size, now and then a pause in which helpers go to sleep. */
int main(int argc, char **argv) {
  if (argc < 4) return 2;
  const int32_t threads = atoi(argv[1]), regions = atoi(argv[2]), pause_every = atoi(argv[3]);
  static atomic_int touched[MOST], busy[64], failures;
  static pool p;
  static pool_worker workers[64];
  fesetround(FE_UPWARD); /* what helpers would inherit */
  if (rounds_to_nearest() || !pool_start(&p, threads, workers)) return 3;
  fesetround(FE_TONEAREST);
  const run r = {.threads = threads, .pool = &p, .parallel_for = pool_for};
  for (int32_t n = 0; n < regions; n++) {
    const int32_t count = n % 7 == 0 ? 2 : n % 97 == 0 ? MOST : n % 61;
    const job j = {touched, busy, &failures, count, n % 5 + 1, threads};
    parallel(&r, count, j.grain, body, &j);
    for (int32_t i = 0; i < count; i++) {
      if (atomic_exchange(&touched[i], 0) != 1) return 4;
    }
    if (pause_every && n % pause_every == 0) rest(2);
  }
  rest(50); /* spins end */
  const double before = cpu_seconds();
  rest(300);
  printf("failures %d idle %.6f\n", atomic_load(&failures), cpu_seconds() - before);
  pool_stop(&p);
  return 0;
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pool")
    (found / "pool.c").write_text(PROGRAM)
    return found


def program(folder: Path, *flags: str) -> Path:
    """The test program, compiled once for each set of flags."""
    compiler = next((c for c in ("gcc", "clang", "cc") if shutil.which(c)), None) or pytest.skip("no C compiler here")
    output = folder / f"pool{''.join(flags)}"
    if not output.exists():
        command = [compiler, "-std=c11", "-O2", "-frounding-math", "-Wall", "-Wextra", "-Werror", "-pedantic", *flags,
                   "-I", str(RUNTIME), "pool.c", "-o", str(output), "-lm", "-pthread"]  # fmt: skip
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if flags and "cannot find" in done.stderr:
            pytest.skip(f"no library for {' '.join(flags)} here")
        assert done.returncode == 0, done.stderr
    return output


def check(path: Path, threads: int, regions: int, pause_every: int) -> float:
    """Runs it; the CPU seconds that it took while idle for 0.3 s."""
    done = subprocess.run([path, *map(str, (threads, regions, pause_every))], capture_output=True, text=True,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    found = re.fullmatch(r"failures (\d+) idle ([\d.]+)\n", done.stdout)
    assert found and found[1] == "0", done.stdout
    return float(found[2])


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_many_tiny_regions(folder: Path, threads: int) -> None:
    check(program(folder), threads, 50_000, 0)


@pytest.mark.parametrize("threads", [2, 4])
def test_helpers_wake_from_sleep(folder: Path, threads: int) -> None:
    check(program(folder), threads, 2_000, 10)


def test_an_idle_pool_takes_no_time(folder: Path) -> None:
    assert check(program(folder), 4, 100, 0) < 0.003


def test_more_threads_than_cores(folder: Path) -> None:
    check(program(folder), 32, 3_000, 0)


def test_no_data_race(folder: Path) -> None:
    check(program(folder, "-fsanitize=thread"), 4, 1_000, 100)
