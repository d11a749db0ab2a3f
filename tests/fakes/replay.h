/* Answers C calls from a spec file (the format of willitrun_probe/gpus/spec.py).
 *
 *   TARGET FUNCTION[:ARGUMENT] = VALUES | !CODE | ~MILLISECONDS | HANG | SEGV | EXIT
 *
 * The last matching line wins; `gpu0-7` stands for eight targets and `*` for every target without a line of its own.
 */
#ifndef REPLAY_H
#define REPLAY_H

#include <ctype.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

struct entry {
    char target[48];
    char key[112];
    char *values;
};

static struct entry *entries;
static size_t entry_count;

/* One answer being read: `code` is what the call returns, `next` the unread values. */
struct answer {
    int found;
    int code;
    const char *next;
};

static void load_spec(const char *variable)
{
    const char *path = getenv(variable);
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[8192];
    entry_count = 0;
    while (file && fgets(line, sizeof line, file)) {
        struct entry entry;
        int consumed = 0;
        line[strcspn(line, "\r\n")] = 0;
        if (sscanf(line, " %47s %111s = %n", entry.target, entry.key, &consumed) < 2 || entry.target[0] == '#')
            continue;
        const char *equals = strstr(line, " =");
        if (!equals)
            continue;
        entry.values = strdup(equals + 2);
        entries = realloc(entries, (entry_count + 1) * sizeof *entries);
        entries[entry_count++] = entry;
    }
    if (file)
        fclose(file);
}

static int target_matches(const char *pattern, const char *target)
{
    int low, high, number, used = 0;
    if (!strcmp(pattern, target))
        return 1;
    if (sscanf(pattern, "gpu%d-%d%n", &low, &high, &used) == 2 && used) {
        int plain = 0;
        if (sscanf(target, "gpu%d%n", &number, &plain) == 1 && number >= low && number <= high)
            return !strcmp(pattern + used, target + plain);
    }
    return 0;
}

static const char *find_values(const char *target, const char *key)
{
    for (size_t i = entry_count; i-- > 0;)
        if (!strcmp(entries[i].key, key) && target_matches(entries[i].target, target))
            return entries[i].values;
    for (size_t i = entry_count; i-- > 0;)
        if (!strcmp(entries[i].key, key) && !strcmp(entries[i].target, "*"))
            return entries[i].values;
    return NULL;
}

static struct answer look_up(const char *target, const char *key)
{
    struct answer answer = {0, 0, ""};
    const char *at = find_values(target, key);
    if (!at)
        return answer;
    answer.found = 1;
    for (;;) {
        while (*at == ' ')
            at++;
        if (*at == '~') {
            char *end;
            usleep(1000 * (useconds_t)strtoul(at + 1, &end, 10));
            at = end;
        } else if (!strncmp(at, "HANG", 4)) {
            for (;;)
                pause();
        } else if (!strncmp(at, "SEGV", 4)) {
            raise(SIGSEGV);
        } else if (!strncmp(at, "EXIT", 4)) {
            _exit(77);
        } else if (*at == '!') {
            answer.code = (int)strtol(at + 1, NULL, 0);
            return answer;
        } else {
            answer.next = at;
            return answer;
        }
    }
}

static int has_more(struct answer *answer)
{
    while (*answer->next == ' ')
        answer->next++;
    return *answer->next != 0;
}

static unsigned long long next_number(struct answer *answer)
{
    char *end;
    unsigned long long value;
    if (!has_more(answer))
        return 0;
    value = *answer->next == '-' ? (unsigned long long)strtoll(answer->next, &end, 0)
                                 : strtoull(answer->next, &end, 0);
    if (end == answer->next) /* a word where a number belongs */
        while (*end && *end != ' ')
            end++;
    answer->next = end;
    return value;
}

/* Copies the next value, quoted or bare; `\xHH` inside quotes is a raw byte, for names that are no text. */
static void next_text(struct answer *answer, char *out, size_t room)
{
    size_t used = 0;
    int quoted;
    if (!room)
        return;
    if (!has_more(answer)) {
        *out = 0;
        return;
    }
    quoted = *answer->next == '"';
    answer->next += quoted;
    while (*answer->next && *answer->next != (quoted ? '"' : ' ')) {
        unsigned byte = (unsigned char)*answer->next;
        if (quoted && answer->next[0] == '\\' && answer->next[1] == 'x' && isxdigit((unsigned char)answer->next[2])) {
            sscanf(answer->next + 2, "%2x", &byte);
            answer->next += 3;
        } else if (quoted && answer->next[0] == '\\' && answer->next[1]) {
            byte = (unsigned char)*++answer->next;
        }
        answer->next++;
        if (used + 1 < room)
            out[used++] = (char)byte;
    }
    if (quoted && *answer->next)
        answer->next++;
    out[used] = 0;
}

__attribute__((unused)) static const char *make_key(char room[112], const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(room, 112, format, arguments);
    va_end(arguments);
    return room;
}

#endif
