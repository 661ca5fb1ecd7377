/* Which variants this CPU can run, and the sources that the library was built from. */
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

#ifndef SOURCES
#define SOURCES ""
#endif

EXPORT const char *sources(void) { return SOURCES; }

EXPORT int can_run(const char *variant) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!strcmp(variant, "avx512")) return !!__builtin_cpu_supports("avx512f");
    if (!strcmp(variant, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#elif defined(__aarch64__)
    if (!strcmp(variant, "neon")) return 1;
#endif
    return !strcmp(variant, "plain");
}
