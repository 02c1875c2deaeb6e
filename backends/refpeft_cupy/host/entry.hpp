// Behind a kernel's source: the functions by which Python launches it, one for each KERNEL of the file.

extern "C" {
extern char __start_refpeft_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_refpeft_shared[] __attribute__((weak, visibility("hidden")));
}

// `sizes` is the grid and the block. Returns 0; 1 where a rule was broken, `said` telling which; 2 where memory outside of every
// buffer was touched, at `at`.
#define ENTRY(KERNEL)                                                                                                   \
    static void run_##KERNEL(void** given) { shim::call(KERNEL, given); }                                               \
    extern "C" int launch_##KERNEL(                                                                                     \
        void** given, const unsigned* sizes, int order, shim::word seed, char* said, void** at                          \
    ) {                                                                                                                 \
        shim::run_kernel = run_##KERNEL;                                                                                \
        size_t size = (size_t)(__stop_refpeft_shared - __start_refpeft_shared);                                         \
        return shim::launch(given, sizes, order, seed, said, at, __start_refpeft_shared, size);                         \
    }
