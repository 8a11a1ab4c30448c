/* A libnvidia-ml.so.1 without a driver, for tests: it says what the file named by FAKE_NVML says.
 *
 * The file has one statement a line; what it leaves out succeeds, and cards count as they are listed:
 *
 *     init CODE                       nvmlInit returns this code
 *     count CODE                      so does the counting of cards
 *     card CODE MIB UUID NAME ...     a card; a code other than 0 is what asking for its handle returns
 *     driver TEXT                     the driver's version
 *     cuda NUMBER                     the newest CUDA that it runs, as 12040
 *     hang                            every call but the first, nvmlInit, waits for ever
 *
 * and of the card above, what it does not support without them:
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

#define CARDS 16
#define PARTS 8
#define TEXT 96
#define WHOLE_CARD 0xffffffffu

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    TIMEOUT = 10
};

typedef unsigned long long u64;

typedef struct card {
    int code;
    u64 mib, held, energy, ecc, throttle;
    char uuid[TEXT], name[TEXT];
    unsigned temperature, power, utilisation, sm, memory, xid, xid_instance, instance;
    int has_temperature, has_power, has_energy, has_utilisation, has_clocks, has_throttle, has_ecc;
    unsigned processes, pids[PARTS], parts;
    u64 process_mib[PARTS];
    struct card *whole;
} card_t;

static struct {
    int init, count_code, hang, cuda;
    char driver[TEXT];
    unsigned count;
    card_t cards[CARDS];
    card_t parts[CARDS][PARTS];
} state;

static int initialized;

static void read_card_line(const char *line, card_t *card, card_t *parts)
{
    card_t *part = &parts[card->parts];
    unsigned *n = &card->processes;

    if (sscanf(line, "held %llu", &card->held) == 1)
        return;
    if (sscanf(line, "xid %u %u", &card->xid, &card->xid_instance) == 1)
        card->xid_instance = WHOLE_CARD;
    if (*n < PARTS && sscanf(line, "process %u %llu", &card->pids[*n], &card->process_mib[*n]) == 2)
        ++*n;
    if (card->parts < PARTS && sscanf(line, "mig %llu %95s", &part->mib, part->uuid) == 2) {
        snprintf(part->name, sizeof part->name, "%.80s MIG", card->name);
        part->whole = card;
        part->instance = ++card->parts;
    }
    card->has_temperature |= sscanf(line, "temperature %u", &card->temperature) == 1;
    card->has_power |= sscanf(line, "power %u", &card->power) == 1;
    card->has_energy |= sscanf(line, "energy %llu", &card->energy) == 1;
    card->has_utilisation |= sscanf(line, "utilisation %u", &card->utilisation) == 1;
    card->has_clocks |= sscanf(line, "clocks %u %u", &card->sm, &card->memory) == 2;
    card->has_throttle |= sscanf(line, "throttle %llu", &card->throttle) == 1;
    card->has_ecc |= sscanf(line, "ecc %llu", &card->ecc) == 1;
}

static void read_state(void)
{
    char line[512];
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;

    memset(&state, 0, sizeof state);
    while (file && fgets(line, sizeof line, file)) {
        card_t *card = &state.cards[state.count];
        if (sscanf(line, "init %d", &state.init) == 1 || sscanf(line, "count %d", &state.count_code) == 1
            || sscanf(line, "driver %95s", state.driver) == 1 || sscanf(line, "cuda %d", &state.cuda) == 1)
            continue;
        if (!strncmp(line, "hang", 4))
            state.hang = 1;
        else if (state.count < CARDS
                 && sscanf(line, "card %d %llu %95s %95[^\n]", &card->code, &card->mib, card->uuid, card->name) == 4)
            state.count++;
        else if (state.count)
            read_card_line(line, card - 1, state.parts[state.count - 1]);
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

int nvmlDeviceGetHandleByIndex_v2(unsigned index, card_t **card)
{
    if (!initialized)
        return UNINITIALIZED;
    if (index >= state.count)
        return INVALID_ARGUMENT;
    *card = &state.cards[index];
    return (*card)->code;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, card_t **card)
{
    if (!ready())
        return UNINITIALIZED;
    for (unsigned index = 0; index < state.count; index++) {
        if (!strcmp(uuid, state.cards[index].uuid))
            return nvmlDeviceGetHandleByIndex_v2(index, card);
        for (unsigned part = 0; part < state.cards[index].parts; part++)
            if (!strcmp(uuid, state.parts[index][part].uuid)) {
                *card = &state.parts[index][part];
                return SUCCESS;
            }
    }
    return INVALID_ARGUMENT;
}

int nvmlDeviceGetName(card_t *card, char *name, unsigned size)
{
    return ready() ? copy(name, size, card->name) : UNINITIALIZED;
}

int nvmlDeviceGetUUID(card_t *card, char *uuid, unsigned size)
{
    return ready() ? copy(uuid, size, card->uuid) : UNINITIALIZED;
}

int nvmlDeviceGetMemoryInfo(card_t *card, u64 *total_free_used)
{
    if (!ready())
        return UNINITIALIZED;
    total_free_used[0] = card->mib * 1024 * 1024;
    total_free_used[1] = (card->mib - card->held) * 1024 * 1024;
    total_free_used[2] = card->held * 1024 * 1024;
    return SUCCESS;
}

#define TELLS(NAME, TYPE, HAS, VALUE) \
    int NAME(card_t *card, TYPE *value) \
    { \
        if (!ready()) \
            return UNINITIALIZED; \
        if (!(HAS)) \
            return NOT_SUPPORTED; \
        *value = (VALUE); \
        return SUCCESS; \
    }

TELLS(nvmlDeviceGetPowerUsage, unsigned, card->has_power, card->power)
TELLS(nvmlDeviceGetTotalEnergyConsumption, u64, card->has_energy, card->energy)
TELLS(nvmlDeviceGetCurrentClocksThrottleReasons, u64, card->has_throttle, card->throttle)
TELLS(nvmlDeviceGetMaxMigDeviceCount, unsigned, 1, PARTS)
TELLS(nvmlDeviceGetGpuInstanceId, unsigned, card->whole, card->instance)
TELLS(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, card_t *, card->whole, card->whole)

int nvmlDeviceGetTemperature(card_t *card, int sensor, unsigned *value)
{
    (void)sensor;
    *value = card->temperature;
    return card->has_temperature ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetUtilizationRates(card_t *card, unsigned *gpu_memory)
{
    gpu_memory[0] = card->utilisation;
    return card->has_utilisation ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetClockInfo(card_t *card, int type, unsigned *value)
{
    *value = type == 1 ? card->sm : card->memory;
    return card->has_clocks ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTotalEccErrors(card_t *card, int type, int counter, u64 *value)
{
    *value = card->ecc;
    /* Uncorrected, since the last reset. */
    return card->has_ecc && type == 1 && counter == 0 ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetMigMode(card_t *card, unsigned *current, unsigned *pending)
{
    *current = *pending = card->parts > 0;
    return card->whole ? INVALID_ARGUMENT : SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(card_t *card, unsigned index, card_t **part)
{
    if (index >= card->parts)
        return NOT_FOUND;
    *part = &state.parts[card - state.cards][index];
    return SUCCESS;
}

typedef struct {
    unsigned pid;
    u64 used;
    unsigned gpu_instance, compute_instance;
} process_t;

int nvmlDeviceGetComputeRunningProcesses_v3(card_t *card, unsigned *count, process_t *processes)
{
    unsigned room = *count;

    *count = card->processes;
    if (room < card->processes)
        return INSUFFICIENT_SIZE;
    for (unsigned number = 0; number < card->processes; number++)
        processes[number] = (process_t){card->pids[number], card->process_mib[number] * 1024 * 1024, 0, 0};
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

/* The set of events: the cards that were registered. Each tells of its xid once. */
static unsigned registered, told;

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

int nvmlDeviceRegisterEvents(card_t *card, u64 types, unsigned *set)
{
    (void)types;
    if (card->whole)
        return NOT_SUPPORTED;
    *set |= 1u << (card - state.cards);
    return SUCCESS;
}

typedef struct {
    card_t *card;
    u64 type, data;
    unsigned gpu_instance, compute_instance;
} event_t;

int nvmlEventSetWait_v2(unsigned *set, event_t *event, unsigned milliseconds)
{
    for (unsigned waited = 0; waited < milliseconds; waited += 10) {
        for (unsigned index = 0; index < state.count; index++)
            if (state.cards[index].xid && *set & ~told & 1u << index) {
                told |= 1u << index;
                *event = (event_t){&state.cards[index], 8, state.cards[index].xid,
                                   state.cards[index].xid_instance, WHOLE_CARD};
                return SUCCESS;
            }
        usleep(10000);
    }
    return TIMEOUT;
}
