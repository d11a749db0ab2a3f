/* A stand-in for libnvidia-ml.so.1 that answers from the file named by WILLITRUN_FAKE_NVML.
 *
 *   cc -shared -fPIC -fvisibility=hidden -Wl,-soname,libnvidia-ml.so.1 -o libnvidia-ml.so.1 nvml.c
 *
 * Calls without a line answer NOT_SUPPORTED, as drivers do for what a GPU lacks. A function whose line is `!13` is what
 * an old driver without it looks like: the bindings turn a missing symbol into the same code.
 * Layouts and codes: NVML API reference, https://docs.nvidia.com/deploy/nvml-api/.
 */
#include "replay.h"

typedef int code;
typedef struct device *handle;

enum { SUCCESS, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND = 6, TOO_SMALL = 7, WRONG_VERSION = 25 };
enum { GPUS = 64, SLICES = 16 };

static struct device {
    int gpu, slice; /* slice -1 is the whole GPU */
} devices[GPUS][SLICES + 1];
static int started;

static struct answer ask_system(const char *key)
{
    struct answer answer = {1, UNINITIALIZED, ""};
    if (!started)
        return answer;
    answer = look_up("sys", key);
    if (!answer.found)
        answer.code = NOT_SUPPORTED;
    return answer;
}

static const char *name_of(handle device, char room[48])
{
    if (device->slice < 0)
        snprintf(room, 48, "gpu%d", device->gpu);
    else
        snprintf(room, 48, "gpu%d/mig%d", device->gpu, device->slice);
    return room;
}

static struct answer ask(handle device, const char *key)
{
    char target[48];
    struct answer answer = {1, UNINITIALIZED, ""};
    if (!started)
        return answer;
    if (!device) {
        answer.code = INVALID_ARGUMENT;
        return answer;
    }
    answer = look_up(name_of(device, target), key);
    if (!answer.found)
        answer.code = NOT_SUPPORTED;
    return answer;
}

static void copy_numbers(struct answer *answer, unsigned *const outs[], int count)
{
    for (int i = 0; i < count; i++)
        *outs[i] = (unsigned)next_number(answer);
}

/* ---- library ---- */

EXPORT code nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    load_spec("WILLITRUN_FAKE_NVML");
    struct answer answer = look_up("sys", "nvmlInitWithFlags");
    const char *chatter = find_values("sys", "chatter");
    if (chatter) {
        printf("%s\n", chatter);
        fflush(stdout);
    }
    if (!answer.code)
        started = 1;
    for (int gpu = 0; gpu < GPUS; gpu++)
        for (int slice = -1; slice < SLICES; slice++)
            devices[gpu][slice + 1] = (struct device){gpu, slice};
    return answer.code;
}

EXPORT code nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT code nvmlShutdown(void) { return started ? SUCCESS : UNINITIALIZED; }

EXPORT const char *nvmlErrorString(code number)
{
    static char text[48];
    snprintf(text, sizeof text, "replayed error %d", number);
    return text;
}

#define SYSTEM_TEXT(function)                             \
    EXPORT code function(char *out, unsigned room)        \
    {                                                     \
        struct answer answer = ask_system(#function);     \
        if (!answer.code)                                 \
            next_text(&answer, out, room);                \
        return answer.code;                               \
    }
SYSTEM_TEXT(nvmlSystemGetDriverVersion)
SYSTEM_TEXT(nvmlSystemGetNVMLVersion)

EXPORT code nvmlSystemGetCudaDriverVersion_v2(int *out)
{
    struct answer answer = ask_system("nvmlSystemGetCudaDriverVersion_v2");
    if (!answer.code)
        *out = (int)next_number(&answer);
    return answer.code;
}

EXPORT code nvmlSystemGetConfComputeState(unsigned out[3])
{
    struct answer answer = ask_system("nvmlSystemGetConfComputeState");
    for (int i = 0; !answer.code && i < 3; i++)
        out[i] = (unsigned)next_number(&answer);
    return answer.code;
}

/* ---- devices ---- */

EXPORT code nvmlDeviceGetCount_v2(unsigned *out)
{
    struct answer answer = ask_system("nvmlDeviceGetCount_v2");
    if (!answer.code)
        *out = (unsigned)next_number(&answer);
    return answer.code;
}

EXPORT code nvmlDeviceGetHandleByIndex_v2(unsigned index, handle *out)
{
    char target[48];
    if (index >= GPUS)
        return INVALID_ARGUMENT;
    struct answer answer = look_up(make_key((char[112]){0}, "gpu%u", index), "nvmlDeviceGetHandleByIndex_v2");
    (void)target;
    *out = &devices[index][0];
    return answer.code;
}

EXPORT code nvmlDeviceGetMigDeviceHandleByIndex(handle parent, unsigned index, handle *out)
{
    char target[48];
    if (index >= SLICES || parent->slice >= 0)
        return INVALID_ARGUMENT;
    handle slice = &devices[parent->gpu][index + 1];
    if (!find_values(name_of(slice, target), "nvmlDeviceGetUUID"))
        return NOT_FOUND;
    struct answer answer = look_up(target, "nvmlDeviceGetMigDeviceHandleByIndex");
    *out = slice;
    return answer.code;
}

#define TEXT(function)                                                \
    EXPORT code function(handle device, char *out, unsigned room)     \
    {                                                                 \
        struct answer answer = ask(device, #function);                \
        if (!answer.code)                                             \
            next_text(&answer, out, room);                            \
        return answer.code;                                           \
    }
#define NUMBER(function)                                              \
    EXPORT code function(handle device, unsigned *out)                \
    {                                                                 \
        struct answer answer = ask(device, #function);                \
        if (!answer.code)                                             \
            *out = (unsigned)next_number(&answer);                    \
        return answer.code;                                           \
    }
#define LONG_NUMBER(function)                                         \
    EXPORT code function(handle device, unsigned long long *out)      \
    {                                                                 \
        struct answer answer = ask(device, #function);                \
        if (!answer.code)                                             \
            *out = next_number(&answer);                              \
        return answer.code;                                           \
    }
#define PAIR(function)                                                       \
    EXPORT code function(handle device, unsigned *first, unsigned *second)   \
    {                                                                        \
        struct answer answer = ask(device, #function);                       \
        if (!answer.code)                                                    \
            copy_numbers(&answer, (unsigned *const[]){first, second}, 2);    \
        return answer.code;                                                  \
    }
#define INDEXED(function)                                                          \
    EXPORT code function(handle device, unsigned index, unsigned *out)             \
    {                                                                              \
        char room[112];                                                            \
        struct answer answer = ask(device, make_key(room, #function ":%u", index)); \
        if (!answer.code)                                                          \
            *out = (unsigned)next_number(&answer);                                 \
        return answer.code;                                                        \
    }

TEXT(nvmlDeviceGetName)
TEXT(nvmlDeviceGetUUID)
NUMBER(nvmlDeviceGetMemoryBusWidth)
NUMBER(nvmlDeviceGetNumGpuCores)
NUMBER(nvmlDeviceGetNumaNodeId)
NUMBER(nvmlDeviceGetCurrPcieLinkGeneration)
NUMBER(nvmlDeviceGetMaxPcieLinkGeneration)
NUMBER(nvmlDeviceGetGpuMaxPcieLinkGeneration)
NUMBER(nvmlDeviceGetCurrPcieLinkWidth)
NUMBER(nvmlDeviceGetMaxPcieLinkWidth)
NUMBER(nvmlDeviceGetPowerManagementLimit)
NUMBER(nvmlDeviceGetPowerManagementDefaultLimit)
NUMBER(nvmlDeviceGetRetiredPagesPendingStatus)
NUMBER(nvmlDeviceGetComputeMode)
NUMBER(nvmlDeviceGetDisplayActive)
NUMBER(nvmlDeviceGetVirtualizationMode)
NUMBER(nvmlDeviceGetMaxMigDeviceCount)
NUMBER(nvmlDeviceGetGpuInstanceId)
NUMBER(nvmlDeviceGetComputeInstanceId)
LONG_NUMBER(nvmlDeviceGetCurrentClocksThrottleReasons)
PAIR(nvmlDeviceGetCudaComputeCapability)
PAIR(nvmlDeviceGetMigMode)
INDEXED(nvmlDeviceGetMaxClockInfo)
INDEXED(nvmlDeviceGetNvLinkState)
INDEXED(nvmlDeviceGetNvLinkVersion)
INDEXED(nvmlDeviceGetNvLinkRemoteDeviceType)

EXPORT code nvmlDeviceGetTotalEccErrors(handle device, unsigned type, unsigned counter, unsigned long long *out)
{
    char room[112];
    struct answer answer = ask(device, make_key(room, "nvmlDeviceGetTotalEccErrors:%u:%u", type, counter));
    if (!answer.code)
        *out = next_number(&answer);
    return answer.code;
}

EXPORT code nvmlDeviceGetRemappedRows(handle device, unsigned *a, unsigned *b, unsigned *pending, unsigned *failure)
{
    struct answer answer = ask(device, "nvmlDeviceGetRemappedRows");
    if (!answer.code)
        copy_numbers(&answer, (unsigned *const[]){a, b, pending, failure}, 4);
    return answer.code;
}

/* ---- structures ---- */

struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
struct process { unsigned pid; unsigned long long used; unsigned instance, slice; };
struct long_process { unsigned pid; unsigned long long used; unsigned instance, slice; unsigned long long secret; };
struct attributes { unsigned counts[8]; unsigned long long mebibytes; };
struct addressing { unsigned version, value; };

_Static_assert(sizeof(struct memory_v2) == 40, "nvmlMemory_v2_t");
_Static_assert(sizeof(struct pci) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(struct process) == 24 && sizeof(struct long_process) == 32, "nvmlProcessInfo_t");
_Static_assert(sizeof(struct attributes) == 40, "nvmlDeviceAttributes_t");

EXPORT code nvmlDeviceGetMemoryInfo(handle device, struct memory *out)
{
    struct answer answer = ask(device, "nvmlDeviceGetMemoryInfo");
    if (!answer.code) {
        out->total = next_number(&answer);
        out->free = next_number(&answer);
        out->used = next_number(&answer);
    }
    return answer.code;
}

EXPORT code nvmlDeviceGetMemoryInfo_v2(handle device, struct memory_v2 *out)
{
    struct answer answer = ask(device, "nvmlDeviceGetMemoryInfo_v2");
    if (answer.code)
        return answer.code;
    if (out->version != (sizeof *out | 2u << 24))
        return WRONG_VERSION;
    out->total = next_number(&answer);
    out->reserved = next_number(&answer);
    out->free = next_number(&answer);
    out->used = next_number(&answer);
    return SUCCESS;
}

static code fill_pci(struct answer answer, struct pci *out)
{
    if (answer.code)
        return answer.code;
    memset(out, 0, sizeof *out);
    next_text(&answer, out->bus_id, sizeof out->bus_id);
    sscanf(out->bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    snprintf(out->legacy, sizeof out->legacy, "%04X:%02X:%02X.0", out->domain & 0xffff, out->bus & 0xff, out->device & 0x1f);
    out->id = (unsigned)next_number(&answer);
    out->subsystem = (unsigned)next_number(&answer);
    return SUCCESS;
}

EXPORT code nvmlDeviceGetPciInfo_v3(handle device, struct pci *out)
{
    return fill_pci(ask(device, "nvmlDeviceGetPciInfo_v3"), out);
}

EXPORT code nvmlDeviceGetNvLinkRemotePciInfo_v2(handle device, unsigned link, struct pci *out)
{
    char room[112];
    return fill_pci(ask(device, make_key(room, "nvmlDeviceGetNvLinkRemotePciInfo_v2:%u", link)), out);
}

EXPORT code nvmlDeviceGetAttributes_v2(handle device, struct attributes *out)
{
    struct answer answer = ask(device, "nvmlDeviceGetAttributes_v2");
    if (answer.code)
        return answer.code;
    for (int i = 0; i < 8; i++)
        out->counts[i] = (unsigned)next_number(&answer);
    out->mebibytes = next_number(&answer);
    return SUCCESS;
}

EXPORT code nvmlDeviceGetAddressingMode(handle device, struct addressing *out)
{
    struct answer answer = ask(device, "nvmlDeviceGetAddressingMode");
    if (!answer.code && out->version != (sizeof *out | 1u << 24))
        return WRONG_VERSION;
    if (!answer.code)
        out->value = (unsigned)next_number(&answer);
    return answer.code;
}

/* Drivers 535.43 to 535.86 write longer records; the spec says so with `sys long_process_records = 1`. */
static code list_processes(handle device, const char *key, unsigned *count, void *out)
{
    struct answer answer = ask(device, key), counted = answer;
    unsigned have = 0, room = *count;
    int is_long = find_values("sys", "long_process_records") != NULL;
    if (answer.code)
        return answer.code;
    for (; has_more(&counted); have++)
        for (int i = 0; i < 4; i++)
            next_number(&counted);
    *count = have;
    if (have > room || (have && !out))
        return TOO_SMALL;
    for (unsigned i = 0; i < have; i++) {
        struct long_process one = {0};
        one.pid = (unsigned)next_number(&answer);
        one.used = next_number(&answer);
        one.instance = (unsigned)next_number(&answer);
        one.slice = (unsigned)next_number(&answer);
        memcpy((char *)out + i * (is_long ? sizeof one : sizeof(struct process)), &one,
               is_long ? sizeof one : sizeof(struct process));
    }
    return SUCCESS;
}

#define PROCESSES(function)                                                      \
    EXPORT code function(handle device, unsigned *count, void *out)              \
    {                                                                            \
        return list_processes(device, #function, count, out);                    \
    }
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3)
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2)
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2)
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v2)

/* ---- pairs ---- */

EXPORT code nvmlDeviceGetTopologyCommonAncestor(handle device, handle other, unsigned *out)
{
    char room[112];
    struct answer answer = ask(device, make_key(room, "nvmlDeviceGetTopologyCommonAncestor:gpu%d", other->gpu));
    if (!answer.code)
        *out = (unsigned)next_number(&answer);
    return answer.code;
}

EXPORT code nvmlDeviceGetP2PStatus(handle device, handle other, unsigned index, unsigned *out)
{
    char room[112];
    struct answer answer = ask(device, make_key(room, "nvmlDeviceGetP2PStatus:gpu%d:%u", other->gpu, index));
    if (!answer.code)
        *out = (unsigned)next_number(&answer);
    return answer.code;
}
