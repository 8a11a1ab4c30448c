/* A libnvidia-ml.so.1 without a driver, for tests: it says what the file named by FAKE_NVML says.
 *
 * The file has one statement a line; what it leaves out succeeds, and cards count as they are listed:
 *
 *     init CODE                       nvmlInit returns this code
 *     count CODE                      so does the counting of cards
 *     card CODE MIB UUID NAME ...     a card; a code other than 0 is what asking for its handle returns
 *     held MIB                        so much memory of the card above is in somebody's use
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CARDS 16
#define TEXT 96

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7 };

typedef struct {
    int code;
    unsigned long long mib, held;
    char uuid[TEXT], name[TEXT];
} card_t;

static struct {
    int init, count_code;
    unsigned count;
    card_t cards[CARDS];
} state;

static int initialized;

static void read_state(void)
{
    char line[512];
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;

    memset(&state, 0, sizeof state);
    while (file && fgets(line, sizeof line, file)) {
        card_t *card = &state.cards[state.count];
        if (sscanf(line, "init %d", &state.init) == 1 || sscanf(line, "count %d", &state.count_code) == 1)
            continue;
        if (state.count && sscanf(line, "held %llu", &state.cards[state.count - 1].held) == 1)
            continue;
        if (state.count < CARDS
            && sscanf(line, "card %d %llu %95s %95[^\n]", &card->code, &card->mib, card->uuid, card->name) == 4)
            state.count++;
    }
    if (file)
        fclose(file);
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
    if (!initialized)
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
    for (unsigned index = 0; index < state.count; index++)
        if (!strcmp(uuid, state.cards[index].uuid))
            return nvmlDeviceGetHandleByIndex_v2(index, card);
    return initialized ? INVALID_ARGUMENT : UNINITIALIZED;
}

int nvmlDeviceGetName(card_t *card, char *name, unsigned size)
{
    return initialized ? copy(name, size, card->name) : UNINITIALIZED;
}

int nvmlDeviceGetUUID(card_t *card, char *uuid, unsigned size)
{
    return initialized ? copy(uuid, size, card->uuid) : UNINITIALIZED;
}

int nvmlDeviceGetMemoryInfo(card_t *card, unsigned long long *total_free_used)
{
    if (!initialized)
        return UNINITIALIZED;
    total_free_used[0] = card->mib * 1024 * 1024;
    total_free_used[1] = (card->mib - card->held) * 1024 * 1024;
    total_free_used[2] = card->held * 1024 * 1024;
    return SUCCESS;
}
