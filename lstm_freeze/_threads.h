/* Units of work for several threads: those that torch's own operations run on, since a second pool
 * would compete with them. Include after Python.h and stdint.h. */

/* OpenMP's GOMP_parallel as torch has it loaded; null where there is none. */
static void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

#if defined(__GNUC__) || defined(__clang__)
#define TAKE(counter) __atomic_fetch_add(&(counter), 1, __ATOMIC_RELAXED)
#else
#define TAKE(counter) (counter)++ /* such compilers serve no platform with GOMP_parallel */
#endif

typedef struct {
    const void *job;
    void (*run)(const void *job, int64_t unit);
    int64_t units, next;
} Shared;

static void take_units(void *argument) {
    Shared *shared = (Shared *)argument;
    int64_t unit;
    while ((unit = TAKE(shared->next)) < shared->units)
        shared->run(shared->job, unit);
}

static void run_units(const void *job, void (*run)(const void *, int64_t), int64_t units,
                      int64_t threads) {
    Shared shared = {job, run, units, 0};
    if (parallel && threads > 1 && units > 1)
        parallel(take_units, &shared, (unsigned)(threads < units ? threads : units), 0);
    else
        take_units(&shared);
}

static PyObject *share_threads(PyObject *module, PyObject *address) {
    void *pointer = PyLong_AsVoidPtr(address);
    (void)module;
    if (!pointer && PyErr_Occurred())
        return NULL;
    memcpy(&parallel, &pointer, sizeof parallel);
    Py_RETURN_NONE;
}

#define SHARE_THREADS                                                                              \
    {"share_threads", share_threads, METH_O, "Take the address of GOMP_parallel; 0 for none."}
