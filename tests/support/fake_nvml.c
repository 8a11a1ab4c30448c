/* A libnvidia-ml.so.1 without a driver, for tests: it reports what the file named by FAKE_NVML lists.
 *
 * The file has one entry a line; what it leaves out succeeds, and GPUs count as they are listed:
 *
 *     init CODE                       nvmlInit returns this code
 *     count CODE                      so does the counting of GPUs
 *     gpu CODE MIB UUID NAME ...      a GPU; a code other than 0 is what asking for its handle returns
 *     driver TEXT                     the driver's version
 *     cuda NUMBER                     the newest CUDA that it runs, as 12040
 *     hang                            every call but the first, nvmlInit, waits for ever
 *
 * and of the GPU above, what it does not support without them:
 *
 *     held MIB                        so much of its memory is in somebody's use
 *     process PID MIB                 by this process
 *     temperature C, power MW, energy MJ, utilisation PERCENT, clocks SM MEMORY, throttle BITS, ecc COUNT
 *     xid NUMBER [INSTANCE]           the first event on it; of that instance alone
 *     mig MIB UUID                    MIG is on, and this is an instance
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GPUS 16
#define PARTS 8
#define TEXT 96
#define WHOLE_GPU 0xffffffffu

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10
};

typedef unsigned long long u64;

typedef struct gpu {
    int code;
    u64 mib, held, energy, ecc, throttle;
    char uuid[TEXT], name[TEXT];
    unsigned temperature, power, utilisation, sm, memory, xid, xid_instance, instance;
    int has_temperature, has_power, has_energy, has_utilisation, has_clocks, has_throttle, has_ecc;
    unsigned processes, pids[PARTS], parts;
    u64 process_mib[PARTS];
    struct gpu *whole;
} gpu_t;

static struct {
    int init, count_code, hang, cuda;
    char driver[TEXT];
    unsigned count;
    gpu_t gpus[GPUS];
    gpu_t parts[GPUS][PARTS];
} state;

static int initialized;

static void read_gpu_line(const char *line, gpu_t *gpu, gpu_t *parts)
{
    gpu_t *part = &parts[gpu->parts];
    unsigned *n = &gpu->processes;

    if (sscanf(line, "held %llu", &gpu->held) == 1)
        return;
    if (sscanf(line, "xid %u %u", &gpu->xid, &gpu->xid_instance) == 1)
        gpu->xid_instance = WHOLE_GPU;
    if (*n < PARTS && sscanf(line, "process %u %llu", &gpu->pids[*n], &gpu->process_mib[*n]) == 2)
        ++*n;
    if (gpu->parts < PARTS && sscanf(line, "mig %llu %95s", &part->mib, part->uuid) == 2) {
        snprintf(part->name, sizeof part->name, "%.80s MIG", gpu->name);
        part->whole = gpu;
        part->instance = ++gpu->parts;
    }
    gpu->has_temperature |= sscanf(line, "temperature %u", &gpu->temperature) == 1;
    gpu->has_power |= sscanf(line, "power %u", &gpu->power) == 1;
    gpu->has_energy |= sscanf(line, "energy %llu", &gpu->energy) == 1;
    gpu->has_utilisation |= sscanf(line, "utilisation %u", &gpu->utilisation) == 1;
    gpu->has_clocks |= sscanf(line, "clocks %u %u", &gpu->sm, &gpu->memory) == 2;
    gpu->has_throttle |= sscanf(line, "throttle %llu", &gpu->throttle) == 1;
    gpu->has_ecc |= sscanf(line, "ecc %llu", &gpu->ecc) == 1;
}

static void read_state(void)
{
    char line[512];
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;

    memset(&state, 0, sizeof state);
    while (file && fgets(line, sizeof line, file)) {
        gpu_t *gpu = &state.gpus[state.count];
        if (sscanf(line, "init %d", &state.init) == 1 || sscanf(line, "count %d", &state.count_code) == 1
            || sscanf(line, "driver %95s", state.driver) == 1 || sscanf(line, "cuda %d", &state.cuda) == 1)
            continue;
        if (!strncmp(line, "hang", 4))
            state.hang = 1;
        else if (state.count < GPUS
                 && sscanf(line, "gpu %d %llu %95s %95[^\n]", &gpu->code, &gpu->mib, gpu->uuid, gpu->name) == 4)
            state.count++;
        else if (state.count)
            read_gpu_line(line, gpu - 1, state.parts[state.count - 1]);
    }
    if (file)
        fclose(file);
}

/* What each call begins with. */
static int ready(void)
{
    while (state.hang)
        sleep(3600);
    return initialized;
}

static int copy(char *to, unsigned size, const char *from)
{
    if (size <= strlen(from))
        return INSUFFICIENT_SIZE;
    strcpy(to, from);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    read_state();
    if (state.init == SUCCESS)
        initialized++;
    return state.init;
}

int nvmlShutdown(void)
{
    if (!initialized)
        return UNINITIALIZED;
    initialized--;
    return SUCCESS;
}

const char *nvmlErrorString(int code)
{
    return code == 9 ? "Driver Not Loaded" : code == 15 ? "GPU is lost" : code == 999 ? "Unknown Error" : "Some Error";
}

int nvmlDeviceGetCount_v2(unsigned *count)
{
    if (!ready())
        return UNINITIALIZED;
    *count = state.count;
    return state.count_code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, gpu_t **gpu)
{
    if (!initialized)
        return UNINITIALIZED;
    if (index >= state.count)
        return INVALID_ARGUMENT;
    *gpu = &state.gpus[index];
    return (*gpu)->code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, gpu_t **gpu)
{
    if (!ready())
        return UNINITIALIZED;
    for (unsigned index = 0; index < state.count; index++) {
        if (!strcmp(uuid, state.gpus[index].uuid))
            return nvmlDeviceGetHandleByIndex_v2(index, gpu);
        for (unsigned part = 0; part < state.gpus[index].parts; part++)
            if (!strcmp(uuid, state.parts[index][part].uuid)) {
                *gpu = &state.parts[index][part];
                return SUCCESS;
            }
    }
    return INVALID_ARGUMENT;
}

int nvmlDeviceGetName(gpu_t *gpu, char *name, unsigned size)
{
    return ready() ? copy(name, size, gpu->name) : UNINITIALIZED;
}

int nvmlDeviceGetUUID(gpu_t *gpu, char *uuid, unsigned size)
{
    return ready() ? copy(uuid, size, gpu->uuid) : UNINITIALIZED;
}

int nvmlDeviceGetMemoryInfo(gpu_t *gpu, u64 *total_free_used)
{
    if (!ready())
        return UNINITIALIZED;
    total_free_used[0] = gpu->mib * 1024 * 1024;
    total_free_used[1] = (gpu->mib - gpu->held) * 1024 * 1024;
    total_free_used[2] = gpu->held * 1024 * 1024;
    return SUCCESS;
}

#define REPORTS(NAME, TYPE, HAS, VALUE) \
    int NAME(gpu_t *gpu, TYPE *value) \
    { \
        if (!ready()) \
            return UNINITIALIZED; \
        if (!(HAS)) \
            return NOT_SUPPORTED; \
        *value = (VALUE); \
        return SUCCESS; \
    }

REPORTS(nvmlDeviceGetPowerUsage, unsigned, gpu->has_power, gpu->power)
REPORTS(nvmlDeviceGetTotalEnergyConsumption, u64, gpu->has_energy, gpu->energy)
REPORTS(nvmlDeviceGetCurrentClocksThrottleReasons, u64, gpu->has_throttle, gpu->throttle)
REPORTS(nvmlDeviceGetMaxMigDeviceCount, unsigned, 1, PARTS)
REPORTS(nvmlDeviceGetGpuInstanceId, unsigned, gpu->whole, gpu->instance)
REPORTS(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, gpu_t *, gpu->whole, gpu->whole)

int nvmlDeviceGetTemperature(gpu_t *gpu, int sensor, unsigned *value)
{
    (void)sensor;
    *value = gpu->temperature;
    return gpu->has_temperature ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetUtilizationRates(gpu_t *gpu, unsigned *gpu_memory)
{
    gpu_memory[0] = gpu->utilisation;
    return gpu->has_utilisation ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetClockInfo(gpu_t *gpu, int type, unsigned *value)
{
    *value = type == 1 ? gpu->sm : gpu->memory;
    return gpu->has_clocks ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTotalEccErrors(gpu_t *gpu, int type, int counter, u64 *value)
{
    *value = gpu->ecc;
    /* Uncorrected, since the last reset. */
    return gpu->has_ecc && type == 1 && counter == 0 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMigMode(gpu_t *gpu, unsigned *current, unsigned *pending)
{
    *current = *pending = gpu->parts > 0;
    return gpu->whole ? INVALID_ARGUMENT : SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(gpu_t *gpu, unsigned index, gpu_t **part)
{
    if (index >= gpu->parts)
        return NOT_FOUND;
    *part = &state.parts[gpu - state.gpus][index];
    return SUCCESS;
}

typedef struct {
    unsigned pid;
    u64 used;
    unsigned gpu_instance, compute_instance;
} process_t;

int nvmlDeviceGetComputeRunningProcesses_v3(gpu_t *gpu, unsigned *count, process_t *processes)
{
    unsigned room = *count;

    *count = gpu->processes;
    if (room < gpu->processes)
        return INSUFFICIENT_SIZE;
    for (unsigned number = 0; number < gpu->processes; number++)
        processes[number] = (process_t){gpu->pids[number], gpu->process_mib[number] * 1024 * 1024, 0, 0};
    return SUCCESS;
}

int nvmlSystemGetDriverVersion(char *version, unsigned size)
{
    return copy(version, size, state.driver);
}

int nvmlSystemGetCudaDriverVersion(int *version)
{
    *version = state.cuda;
    return state.cuda ? SUCCESS : NOT_SUPPORTED;
}

/* The set of events: the GPUs that were registered. Each reports its xid once. */
static unsigned registered, reported;

int nvmlEventSetCreate(unsigned **set)
{
    *set = &registered;
    registered = 0;
    return SUCCESS;
}

int nvmlEventSetFree(unsigned *set)
{
    *set = 0;
    return SUCCESS;
}

int nvmlDeviceRegisterEvents(gpu_t *gpu, u64 types, unsigned *set)
{
    (void)types;
    if (gpu->whole)
        return NOT_SUPPORTED;
    *set |= 1u << (gpu - state.gpus);
    return SUCCESS;
}

typedef struct {
    gpu_t *gpu;
    u64 type, data;
    unsigned gpu_instance, compute_instance;
} event_t;

int nvmlEventSetWait_v2(unsigned *set, event_t *event, unsigned milliseconds)
{
    for (unsigned waited = 0; waited < milliseconds; waited += 10) {
        for (unsigned index = 0; index < state.count; index++)
            if (state.gpus[index].xid && *set & ~reported & 1u << index) {
                reported |= 1u << index;
                *event = (event_t){&state.gpus[index], 8, state.gpus[index].xid,
                                   state.gpus[index].xid_instance, WHOLE_GPU};
                return SUCCESS;
            }
        usleep(10000);
    }
    return TIMEOUT;
}
