/* Fake: a wall clock that a test steps, for a program that is started with this preloaded. The machine's own can't be
 * stepped beside other programs, and a time namespace does not have one. FAKE_WALL_CLOCK names a file of eight bytes: by
 * how many seconds the wall clock is off. Every other clock is the real one. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long long *off;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAKE_WALL_CLOCK");
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *map = mmap(NULL, sizeof *off, PROT_READ, MAP_SHARED, file, 0);
  if (map != MAP_FAILED) off = map;
  close(file);
}

int clock_gettime(clockid_t id, struct timespec *at) {
  int failed = (int)syscall(SYS_clock_gettime, id, at);
  if (!failed && off && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += *off;
  return failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
  int failed = (int)syscall(SYS_gettimeofday, at, zone);
  if (!failed && off) at->tv_sec += *off;
  return failed;
}

time_t time(time_t *into) {
  struct timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  if (into) *into = at.tv_sec;
  return at.tv_sec;
}
