/* A stand-in for libamd_smi.so, laid out for the amdsmi 7.0 bindings, that answers from the file named by
 * WILLITRUN_FAKE_AMDSMI.
 *
 *   cc -shared -fPIC -fvisibility=hidden -DREST='"rest.inc"' -o libamd_smi.so amdsmi.c
 *
 * The bindings look up every function they know when they are imported; rest.inc defines the ones that are not here
 * as REST(name), which answers NOT_SUPPORTED. Structure sizes are those of the bindings' ctypes declarations.
 */
#include "replay.h"

typedef uint32_t status;
typedef struct processor *handle;

enum { SUCCESS = 0, INVALID = 1, NOT_SUPPORTED = 2, NOT_STARTED = 32 };
enum { GPUS = 64 };

static struct processor { int gpu; } processors[GPUS], sockets[GPUS];
static int started;

static struct answer ask(handle device, const char *key)
{
    char target[32];
    struct answer answer = {1, NOT_STARTED, ""};
    if (!started)
        return answer;
    snprintf(target, sizeof target, "gpu%d", device->gpu);
    answer = look_up(target, key);
    if (!answer.found)
        answer.code = NOT_SUPPORTED;
    return answer;
}

static unsigned gpu_count(void)
{
    struct answer answer = look_up("sys", "gpu_count");
    unsigned count = (unsigned)next_number(&answer);
    return count < GPUS ? count : GPUS;
}

EXPORT status amdsmi_init(uint64_t flags)
{
    (void)flags;
    load_spec("WILLITRUN_FAKE_AMDSMI");
    for (int i = 0; i < GPUS; i++)
        processors[i].gpu = sockets[i].gpu = i;
    struct answer answer = look_up("sys", "amdsmi_init");
    started = !answer.code;
    return (status)answer.code;
}

EXPORT status amdsmi_shut_down(void)
{
    started = 0;
    return SUCCESS;
}

struct version { uint32_t major, minor, release, padding; const char *build; };

EXPORT status amdsmi_get_lib_version(struct version *out)
{
    load_spec("WILLITRUN_FAKE_AMDSMI");
    struct answer answer = look_up("sys", "amdsmi_get_lib_version");
    if (!answer.found)
        return NOT_SUPPORTED;
    if (answer.code)
        return (status)answer.code;
    out->major = (uint32_t)next_number(&answer);
    out->minor = (uint32_t)next_number(&answer);
    out->release = (uint32_t)next_number(&answer);
    out->build = "replayed";
    return SUCCESS;
}

EXPORT status amdsmi_status_code_to_string(status number, const char **out)
{
    static char text[48];
    snprintf(text, sizeof text, "replayed status %u", number);
    *out = text;
    return SUCCESS;
}

EXPORT status amdsmi_get_socket_handles(uint32_t *count, handle *out)
{
    if (!started)
        return NOT_STARTED;
    for (unsigned i = 0; out && i < gpu_count() && i < *count; i++)
        out[i] = &sockets[i];
    *count = gpu_count();
    return SUCCESS;
}

EXPORT status amdsmi_get_processor_handles(handle socket, uint32_t *count, handle *out)
{
    if (!started)
        return NOT_STARTED;
    if (out && *count)
        *out = &processors[socket->gpu];
    *count = 1;
    return SUCCESS;
}

struct asic {
    char market_name[256];
    uint32_t vendor_id;
    char vendor_name[256];
    uint32_t subvendor_id;
    uint64_t device_id;
    uint32_t revision;
    char serial[256];
    uint32_t oam_id, compute_units, padding;
    uint64_t graphics_version;
    uint32_t subsystem, reserved[21];
} __attribute__((packed));
struct vram {
    uint32_t type;
    char vendor[256];
    uint32_t padding;
    uint64_t size;
    uint32_t bits, more_padding;
    uint64_t bandwidth, reserved[37];
} __attribute__((packed));
struct usage { uint32_t total, used, reserved[2]; };
struct power_cap { uint64_t cap, standard, dpm, lowest, highest, reserved[3]; };
struct errors { uint64_t corrected, uncorrected, deferred, reserved[5]; };
struct process {
    char name[256];
    uint32_t pid, padding;
    uint64_t memory, graphics_ns, encoder_ns;
    uint32_t reserved[12];
    uint64_t gtt, cpu, vram;
    uint32_t more_reserved[10];
    char container[256];
    uint32_t occupancy, rest[11];
};
_Static_assert(sizeof(struct asic) == 896, "amdsmi_asic_info_t");
_Static_assert(sizeof(struct vram) == 584, "amdsmi_vram_info_t");
_Static_assert(sizeof(struct process) == 704, "amdsmi_proc_info_t");

EXPORT status amdsmi_get_gpu_asic_info(handle device, struct asic *out)
{
    struct answer answer = ask(device, "amdsmi_get_gpu_asic_info");
    if (answer.code)
        return (status)answer.code;
    memset(out, 0, sizeof *out);
    next_text(&answer, out->market_name, sizeof out->market_name);
    out->vendor_id = (uint32_t)next_number(&answer);
    next_text(&answer, out->vendor_name, sizeof out->vendor_name);
    out->subvendor_id = (uint32_t)next_number(&answer);
    out->device_id = next_number(&answer);
    out->revision = (uint32_t)next_number(&answer);
    next_text(&answer, out->serial, sizeof out->serial);
    out->oam_id = (uint32_t)next_number(&answer);
    out->compute_units = (uint32_t)next_number(&answer);
    out->graphics_version = next_number(&answer);
    return SUCCESS;
}

EXPORT status amdsmi_get_gpu_vram_info(handle device, struct vram *out)
{
    struct answer answer = ask(device, "amdsmi_get_gpu_vram_info");
    if (answer.code)
        return (status)answer.code;
    memset(out, 0, sizeof *out);
    out->type = (uint32_t)next_number(&answer);
    next_text(&answer, out->vendor, sizeof out->vendor);
    out->size = next_number(&answer);
    out->bits = (uint32_t)next_number(&answer);
    out->bandwidth = next_number(&answer);
    return SUCCESS;
}

EXPORT status amdsmi_get_gpu_vram_usage(handle device, struct usage *out)
{
    struct answer answer = ask(device, "amdsmi_get_gpu_vram_usage");
    if (answer.code)
        return (status)answer.code;
    out->total = (uint32_t)next_number(&answer);
    out->used = (uint32_t)next_number(&answer);
    return SUCCESS;
}

EXPORT status amdsmi_get_gpu_device_bdf(handle device, uint64_t *out)
{
    char text[48];
    unsigned domain, bus, slot, function;
    struct answer answer = ask(device, "amdsmi_get_gpu_device_bdf");
    if (answer.code)
        return (status)answer.code;
    next_text(&answer, text, sizeof text);
    if (sscanf(text, "%x:%x:%x.%x", &domain, &bus, &slot, &function) != 4)
        return INVALID;
    *out = (uint64_t)domain << 16 | bus << 8 | slot << 3 | function;
    return SUCCESS;
}

EXPORT status amdsmi_get_power_cap_info(handle device, uint32_t sensor, struct power_cap *out)
{
    (void)sensor;
    struct answer answer = ask(device, "amdsmi_get_power_cap_info");
    if (answer.code)
        return (status)answer.code;
    memset(out, 0, sizeof *out);
    out->cap = next_number(&answer);
    out->standard = next_number(&answer);
    out->dpm = next_number(&answer);
    out->lowest = next_number(&answer);
    out->highest = next_number(&answer);
    return SUCCESS;
}

EXPORT status amdsmi_get_gpu_total_ecc_count(handle device, struct errors *out)
{
    struct answer answer = ask(device, "amdsmi_get_gpu_total_ecc_count");
    if (answer.code)
        return (status)answer.code;
    memset(out, 0, sizeof *out);
    out->corrected = next_number(&answer);
    out->uncorrected = next_number(&answer);
    out->deferred = next_number(&answer);
    return SUCCESS;
}

EXPORT status amdsmi_get_gpu_process_list(handle device, uint32_t *count, struct process *out)
{
    struct answer answer = ask(device, "amdsmi_get_gpu_process_list");
    uint32_t have = 0;
    if (answer.code)
        return (status)answer.code;
    for (; has_more(&answer) && have < *count; have++) {
        memset(&out[have], 0, sizeof *out);
        out[have].pid = (uint32_t)next_number(&answer);
        next_text(&answer, out[have].name, sizeof out[have].name);
        out[have].vram = next_number(&answer);
        out[have].gtt = next_number(&answer);
        out[have].memory = out[have].vram + out[have].gtt;
    }
    *count = have;
    return SUCCESS;
}

#define REST_OF(name) EXPORT status name(void) { return started ? NOT_SUPPORTED : NOT_STARTED; }
#ifdef REST
#include REST
#endif
