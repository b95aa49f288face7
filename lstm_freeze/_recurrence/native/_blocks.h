/* A pool of memory: a training step uses the blocks again that the step before it has given back.
 *
 * A block is lent as a DLPack capsule, of which torch makes a tensor. When that tensor is freed,
 * torch calls `give_back`. It is C alone: no Python code runs at that moment, so no exception can be
 * lost there. Include after Python.h. */

/* DLPack's own layout (https://dmlc.github.io/dlpack), which never changes for this name. */
typedef struct {
    void *data;
    int32_t device_type, device_id;
    int32_t dimensions;
    uint8_t type_code, type_bits;
    uint16_t type_lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} LentTensor;

typedef struct ManagedTensor {
    LentTensor tensor;
    void *context;
    void (*deleter)(struct ManagedTensor *);
} ManagedTensor;

#define ON_CPU 1
#define IS_FLOAT 2
#define CAPSULE "dltensor"

#define ALIGNMENT 64
#define MEGABYTE ((int64_t)1 << 20)

/* The head of a block; its memory begins at the next multiple of ALIGNMENT. */
typedef struct Block {
    struct Block *next; /* waiting blocks are a list, the last to come back first */
    int64_t size, since; /* bytes, and the pass in which it came back */
    int64_t shape[1];
    ManagedTensor managed;
} Block;

static struct {
    Block *waiting;
    int64_t now;        /* counts the passes of layers */
    int64_t waits;      /* a block that has waited for so many passes is freed */
    int64_t lent, held; /* bytes that are lent, and bytes that are lent or waiting */
    int64_t peak, peak_before; /* the most bytes lent in these `waits` passes, and in those before */
    char lock;
} blocks = {.waits = 64};

static void lock_blocks(void) {
    while (__atomic_test_and_set(&blocks.lock, __ATOMIC_ACQUIRE))
        ;
}

static void unlock_blocks(void) { __atomic_clear(&blocks.lock, __ATOMIC_RELEASE); }

/* Removes from the waiting blocks those that came back before pass `oldest`, and those that would
 * make `held` more than `most`, the longest waiting first. Returns them as a list, which the caller
 * gives to `free_blocks` after unlocking. */
static Block *take_old_blocks(int64_t oldest, int64_t most) {
    Block *taken = NULL;
    int64_t kept = blocks.lent;
    for (Block **link = &blocks.waiting; *link;) {
        Block *block = *link;
        if (block->since >= oldest && kept + block->size <= most) {
            kept += block->size;
            link = &block->next;
            continue;
        }
        *link = block->next;
        block->next = taken;
        taken = block;
        blocks.held -= block->size;
    }
    return taken;
}

static void free_blocks(Block *block) {
    while (block) {
        Block *next = block->next;
        free(block);
        block = next;
    }
}

static void return_block(Block *block) {
    Block *freed = NULL;
    lock_blocks();
    blocks.lent -= block->size;
    block->since = blocks.now;
    block->next = blocks.waiting;
    blocks.waiting = block;
    if (!blocks.waits)
        freed = take_old_blocks(0, 0);
    unlock_blocks();
    free_blocks(freed);
}

static void give_back(ManagedTensor *managed) { return_block(managed->context); }

/* The smallest waiting block of `size` to 2 * `size` bytes, and of equal ones the last to come back;
 * NULL if there is none. */
static Block *take_block(int64_t size) {
    Block **best = NULL;
    for (Block **link = &blocks.waiting; *link; link = &(*link)->next)
        if ((*link)->size >= size && (*link)->size <= 2 * size &&
            (!best || (*link)->size < (*best)->size))
            best = link;
    Block *found = best ? *best : NULL;
    if (found)
        *best = found->next;
    return found;
}

static int64_t most_held(void) {
    int64_t peak = blocks.peak > blocks.peak_before ? blocks.peak : blocks.peak_before;
    return peak + peak / 2;
}

static Block *lent_block(int64_t size) {
    /* An eighth more, so that the block also fits a somewhat longer batch. */
    int64_t whole = (size + size / 8 + MEGABYTE - 1) / MEGABYTE * MEGABYTE;
    Block *freed = NULL;
    lock_blocks();
    Block *block = take_block(size);
    blocks.lent += block ? block->size : whole;
    if (blocks.lent > blocks.peak)
        blocks.peak = blocks.lent;
    if (!block) {
        blocks.held += whole;
        freed = take_old_blocks(0, most_held());
    }
    unlock_blocks();
    free_blocks(freed);
    if (block)
        return block;
    block = malloc(sizeof(Block) + ALIGNMENT + (size_t)whole);
    if (block) {
        block->size = whole;
        return block;
    }
    lock_blocks();
    blocks.lent -= whole;
    blocks.held -= whole;
    freed = take_old_blocks(0, 0);
    unlock_blocks();
    free_blocks(freed);
    return NULL;
}

static float *memory_of(Block *block) {
    return (float *)(((uintptr_t)(block + 1) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
}

static void drop_capsule(PyObject *capsule) {
    ManagedTensor *managed = PyCapsule_IsValid(capsule, CAPSULE)
                                 ? PyCapsule_GetPointer(capsule, CAPSULE)
                                 : NULL; /* a tensor has taken it over */
    if (managed)
        managed->deleter(managed);
}

static PyObject *lend(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    (void)module;
    if (count != 2) {
        PyErr_Format(PyExc_TypeError, "expected 2 arguments, got %zd", count);
        return NULL;
    }
    int64_t numbers = PyLong_AsLongLong(args[0]), itemsize = PyLong_AsLongLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    if ((itemsize != 4 && itemsize != 8) || numbers < 0 || numbers > INT64_MAX / 32) {
        PyErr_SetString(PyExc_ValueError, "expected a number of floats of 4 or 8 bytes each");
        return NULL;
    }
    Block *block = lent_block(numbers * itemsize);
    if (!block)
        return PyErr_NoMemory();
    block->shape[0] = numbers;
    block->managed = (ManagedTensor){
        {memory_of(block), ON_CPU, 0, 1, IS_FLOAT, (uint8_t)(8 * itemsize), 1, block->shape, NULL, 0},
        block,
        give_back,
    };
    PyObject *capsule = PyCapsule_New(&block->managed, CAPSULE, drop_capsule);
    if (!capsule)
        give_back(&block->managed);
    return capsule;
}

/* Counts a pass of a layer, and frees the blocks that have waited too long. */
static PyObject *pass(PyObject *module, PyObject *none) {
    Block *freed;
    (void)module;
    (void)none;
    lock_blocks();
    blocks.now++;
    if (blocks.waits && blocks.now % blocks.waits == 0) {
        blocks.peak_before = blocks.peak;
        blocks.peak = blocks.lent;
    }
    freed = take_old_blocks(blocks.now - blocks.waits, INT64_MAX);
    unlock_blocks();
    free_blocks(freed);
    Py_RETURN_NONE;
}

static PyObject *release(PyObject *module, PyObject *none) {
    (void)module;
    (void)none;
    lock_blocks();
    int64_t before = blocks.held;
    Block *freed = take_old_blocks(0, 0);
    before -= blocks.held;
    blocks.peak = blocks.lent;
    blocks.peak_before = 0;
    unlock_blocks();
    free_blocks(freed);
    return PyLong_FromLongLong(before);
}

static PyObject *waiting(PyObject *module, PyObject *none) {
    (void)module;
    (void)none;
    lock_blocks();
    int64_t bytes = blocks.held - blocks.lent;
    unlock_blocks();
    return PyLong_FromLongLong(bytes);
}

static PyObject *keep_for(PyObject *module, PyObject *passes) {
    int64_t waits = PyLong_AsLongLong(passes);
    (void)module;
    if (PyErr_Occurred())
        return NULL;
    lock_blocks();
    int64_t before = blocks.waits;
    blocks.waits = waits > 0 ? waits : 0;
    unlock_blocks();
    return PyLong_FromLongLong(before);
}

/* In a forked child: another thread of the parent may have held the lock. Waiting blocks are freed:
 * the child would keep a copy of each of their pages that the parent writes to. */
static PyObject *after_fork(PyObject *module, PyObject *none) {
    unlock_blocks();
    PyObject *released = release(module, none);
    Py_XDECREF(released);
    if (!released)
        return NULL;
    Py_RETURN_NONE;
}

#define MEMORY_METHODS                                                                             \
    {"lend", (PyCFunction)(void (*)(void))lend, METH_FASTCALL,                                     \
     "lend(numbers, itemsize): memory for so many floats, as a DLPack capsule."},                  \
        {"pass_by", pass, METH_NOARGS, "Count a pass of a layer; free what has waited too long."}, \
        {"release", release, METH_NOARGS, "Free all that waits; returns the bytes."},              \
        {"waiting", waiting, METH_NOARGS, "The bytes that wait."},                                 \
        {"keep_for", keep_for, METH_O,                                                             \
         "For how many passes memory waits, 0 for none; returns what it was before."},             \
        {"after_fork", after_fork, METH_NOARGS, "To be called in a forked child."}
