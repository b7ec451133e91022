/* A file as memory: mapped where the system can, else read. */
#ifndef INFERC_MAPPING_H
#define INFERC_MAPPING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(_WIN32)
#include <windows.h>

/* The bytes of a file until the process ends, null where it cannot be read. */
static inline const void *map_file(const char *path, size_t *bytes) {
  const HANDLE file = CreateFileA(path, GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, FILE_ATTRIBUTE_NORMAL, NULL);
  LARGE_INTEGER size;
  if (file == INVALID_HANDLE_VALUE) return NULL;
  const void *at = NULL;
  if (GetFileSizeEx(file, &size)) {
    const HANDLE mapping = CreateFileMappingA(file, NULL, PAGE_READONLY, 0, 0, NULL);
    if (mapping) {
      at = MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
      *bytes = (size_t)size.QuadPart;
      CloseHandle(mapping);
    }
  }
  CloseHandle(file);
  return at;
}
#elif defined(__wasm__)
static inline const void *map_file(const char *path, size_t *bytes) {
  FILE *file = fopen(path, "rb");
  void *at = NULL;
  if (!file) return NULL;
  if (fseek(file, 0, SEEK_END) == 0) {
    const long size = ftell(file);
    at = size > 0 ? aligned_alloc(64, ((size_t)size + 63) / 64 * 64) : NULL;
    rewind(file);
    *bytes = at ? fread(at, 1, (size_t)size, file) : 0;
  }
  fclose(file);
  return at;
}
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static inline const void *map_file(const char *path, size_t *bytes) {
  const int file = open(path, O_RDONLY);
  struct stat facts;
  if (file < 0) return NULL;
  void *at = MAP_FAILED;
  if (fstat(file, &facts) == 0 && S_ISREG(facts.st_mode) && facts.st_size > 0) {
    *bytes = (size_t)facts.st_size;
    at = mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, file, 0);
  }
  close(file);
  return at == MAP_FAILED ? NULL : at;
}
#endif

#endif
