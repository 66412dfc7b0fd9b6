/* What the attack tools share: a bare HTTP/2 gRPC client over a Unix socket and a few wrappers.
 *
 * Tools print lines that begin with a word the test waits for. A call reports:
 *   svid SERIAL     an X.509-SVID came, serial in lower-case hex
 *   message BYTES   any other message came
 *   status CODE     the call ended with that gRPC status
 *   reset CODE      the server reset the stream (HTTP/2 error code)
 *   goaway CODE     the server is closing the connection
 *   eof             the connection is closed
 */
#ifndef MAYFLY_COMMON_H
#define MAYFLY_COMMON_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNUSED __attribute__((unused))

UNUSED static void say(const char *format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    va_end(arguments);
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    /* One write a line: several processes may share the pipe. */
    if (write(STDOUT_FILENO, line, length) != length) _exit(90);
}

UNUSED static void die(const char *what) {
    say("failed %s: %s", what, strerror(errno));
    _exit(91);
}

UNUSED static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

UNUSED static void sleep_ms(int ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000L};
    while (nanosleep(&t, &t) && errno == EINTR) continue;
}

/* Waits for a line on standard input; 0 at its end. */
UNUSED static int wait_line(char *line, size_t size) {
    size_t n = 0;
    char c;
    while (read(STDIN_FILENO, &c, 1) == 1) {
        if (c == '\n') { line[n] = 0; return 1; }
        if (n + 1 < size) line[n++] = c;
    }
    line[n] = 0;
    return 0;
}

UNUSED static void wait_go(void) {
    char line[64];
    wait_line(line, sizeof line);
}

/* This process must not outlive the one that started it. */
UNUSED static void die_with_parent(void) { prctl(PR_SET_PDEATHSIG, SIGKILL); }

UNUSED static void become(uid_t uid) {
    if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid)) die("become");
    /* setuid made us non-dumpable, which an ordinary process is not; and it cleared the death signal. */
    prctl(PR_SET_DUMPABLE, 1);
    die_with_parent();
}

UNUSED static int try_connect(const char *path, int flags) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) { errno = ENAMETOOLONG; return -1; }
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | flags, 0);
    if (fd < 0) return -1;
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    return fd;
}

UNUSED static int connect_to(const char *path) {
    int fd = try_connect(path, 0);
    if (fd < 0) die("connect");
    return fd;
}

/* --- HTTP/2, just enough --------------------------------------------------------------------------- */

enum { DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8 };
enum { END_STREAM = 1, ACK = 1, END_HEADERS = 4 };

/* Preface, and SETTINGS with HEADER_TABLE_SIZE 0: every header then comes as a literal. */
UNUSED static const char H2_OPEN[] =
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" "\0\0\6\4\0\0\0\0\0" "\0\1\0\0\0\0";
#define H2_OPEN_LENGTH (sizeof H2_OPEN - 1)
#define H2_PREFACE_LENGTH 24

UNUSED static size_t put_frame(uint8_t *out, int type, int flags, uint32_t stream, const void *body, size_t n) {
    uint8_t head[9] = {n >> 16, n >> 8, n, type, flags, stream >> 24, stream >> 16, stream >> 8, stream};
    memcpy(out, head, 9);
    if (n) memcpy(out + 9, body, n);
    return 9 + n;
}

static size_t put_text(uint8_t *out, const char *text) {
    size_t n = strlen(text);
    out[0] = n; /* below 127, not Huffman coded */
    memcpy(out + 1, text, n);
    return 1 + n;
}

/* A whole gRPC request on `stream`; at most 512 bytes. */
UNUSED static size_t put_request(uint8_t *out, uint32_t stream, const char *path, const void *body, size_t n) {
    uint8_t block[400], message[64];
    size_t at = 0;
    block[at++] = 0x83; /* :method POST */
    block[at++] = 0x86; /* :scheme http */
    block[at++] = 0x04; at += put_text(block + at, path);
    block[at++] = 0x01; at += put_text(block + at, "localhost");
    block[at++] = 0x0f; block[at++] = 0x10; at += put_text(block + at, "application/grpc");
    block[at++] = 0x00; at += put_text(block + at, "te"); at += put_text(block + at, "trailers");
    block[at++] = 0x00; at += put_text(block + at, "workload.spiffe.io"); at += put_text(block + at, "true");
    size_t total = put_frame(out, HEADERS, END_HEADERS, stream, block, at);
    memset(message, 0, 5);
    message[4] = n;
    if (n) memcpy(message + 5, body, n);
    return total + put_frame(out + total, DATA, END_STREAM, stream, message, 5 + n);
}

#define FETCH_X509 "/SpiffeWorkloadAPI/FetchX509SVID"

UNUSED static int write_all(int fd, const void *bytes, size_t n) {
    const char *at = bytes;
    while (n) {
        ssize_t w = send(fd, at, n, MSG_NOSIGNAL);
        if (w <= 0) return -1;
        at += w;
        n -= w;
    }
    return 0;
}

/* Opens HTTP/2 and asks for X.509-SVIDs on stream 1. */
UNUSED static int ask_first(int fd) {
    uint8_t out[640];
    memcpy(out, H2_OPEN, H2_OPEN_LENGTH);
    size_t n = H2_OPEN_LENGTH + put_request(out + H2_OPEN_LENGTH, 1, FETCH_X509, "", 0);
    return write_all(fd, out, n);
}

/* Asks again on a connection that is open. */
UNUSED static int ask_again(int fd, uint32_t stream) {
    uint8_t out[512];
    return write_all(fd, out, put_request(out, stream, FETCH_X509, "", 0));
}

static ssize_t read_exact(int fd, void *to, size_t n, int64_t until) {
    size_t got = 0;
    while (got < n) {
        struct pollfd p = {fd, POLLIN, 0};
        int64_t left = until - now_ms();
        int ready = poll(&p, 1, left < 0 ? 0 : (int)left);
        if (ready == 0) return -2;
        ssize_t r = read(fd, (char *)to + got, n - got);
        if (r <= 0) return 0;
        got += r;
    }
    return got;
}

/* gRPC status in a header block whose literals are plain or Huffman coded; -1 when there is none. */
static int find_status(const uint8_t *block, size_t n) {
    static const uint8_t coded[] = {0x9a, 0xca, 0xc8, 0xb2, 0x12, 0x34, 0xda, 0x8f};
    const uint8_t *name = memmem(block, n, coded, sizeof coded);
    const uint8_t *value = name ? name + sizeof coded : NULL;
    if (!name && (name = memmem(block, n, "grpc-status", 11))) value = name + 11;
    if (!name || value + 2 > block + n) return -1;
    int length = value[0] & 0x7f, huffman = value[0] & 0x80, code = 0;
    if (!huffman) {
        for (int i = 1; i <= length; i++) code = code * 10 + (value[i] - '0');
        return code;
    }
    /* Digits: 0-2 have five bits 00000-00010, 3-9 have six bits 011001-011111. */
    uint32_t bits = value[1] << 8 | (length > 1 ? value[2] : 0xff);
    for (int left = 8 * length, digits = 0; left >= 5 && digits < 2; digits++) {
        uint32_t five = bits >> 11 & 0x1f, six = bits >> 10 & 0x3f;
        if (five <= 2) { code = code * 10 + five; bits = bits << 5 & 0xffff; left -= 5; }
        else if (left >= 6 && six >= 0x19 && six <= 0x1f) {
            code = code * 10 + 3 + (six - 0x19);
            bits = bits << 6 & 0xffff;
            left -= 6;
        } else break;
    }
    return code;
}

struct watch {
    int silent;  /* count, report no SVIDs */
    int reading; /* gives back the room that each message took, as every real client does */
    int quiet;   /* write nothing, not even the acknowledgements HTTP/2 asks for */
    int svids;   /* X.509-SVIDs that came */
    int ended;   /* a status, reset or end of the connection was seen */
    const char *tag; /* put before each line */
};

static void report_message(struct watch *w, const uint8_t *message, size_t n) {
    /* tbsCertificate begins: [0] { INTEGER 2 }, INTEGER serial. */
    static const uint8_t mark[] = {0xa0, 3, 2, 1, 2, 2};
    const uint8_t *at = memmem(message, n, mark, sizeof mark);
    if (!at) { say("%smessage %zu", w->tag ? w->tag : "", n); return; }
    char hex[64] = "";
    int length = at[6];
    for (int i = 0; i < length && i < 20; i++) sprintf(hex + 2 * i, "%02x", at[7 + i]);
    w->svids++;
    if (!w->silent) say("%ssvid %s", w->tag ? w->tag : "", hex);
}

/* Reads and reports one frame: 1 for a frame, 0 for the end of the connection, -2 when nothing came. */
UNUSED static int watch_one(int fd, struct watch *w, int64_t until) {
    static __thread uint8_t body[1 << 17];
    uint8_t head[9];
    const char *tag = w->tag ? w->tag : "";
    ssize_t got = read_exact(fd, head, 9, until);
    if (got == -2) return -2;
    size_t n = head[0] << 16 | head[1] << 8 | head[2];
    if (got <= 0 || n > sizeof body || (n && read_exact(fd, body, n, until) != (ssize_t)n)) {
        if (!w->silent) say("%seof", tag);
        w->ended = 1;
        return 0;
    }
    uint8_t out[32];
    switch (head[3]) {
    case SETTINGS:
        if (!(head[4] & ACK) && !w->quiet) write_all(fd, out, put_frame(out, SETTINGS, ACK, 0, NULL, 0));
        break;
    case PING:
        if (!(head[4] & ACK) && !w->quiet) write_all(fd, out, put_frame(out, PING, ACK, 0, body, 8));
        break;
    case DATA:
        if (w->reading && n) {
            uint8_t room[4] = {n >> 24, n >> 16, n >> 8, n};
            uint32_t stream = (head[5] & 0x7f) << 24 | head[6] << 16 | head[7] << 8 | head[8];
            size_t k = put_frame(out, WINDOW_UPDATE, 0, 0, room, 4);
            write_all(fd, out, k + put_frame(out + k, WINDOW_UPDATE, 0, stream, room, 4));
        }
        if (n > 5) report_message(w, body, n);
        break;
    case HEADERS: {
        int code = find_status(body, n);
        if (code >= 0 && !w->silent) say("%sstatus %d", tag, code);
        w->ended |= code >= 0;
        break;
    }
    case RST_STREAM: say("%sreset %u", tag, body[2] << 8 | body[3]); w->ended = 1; break;
    case GOAWAY: say("%sgoaway %u", tag, body[6] << 8 | body[7]); break;
    default: break;
    }
    return 1;
}

/* Watches until the connection ends, or `ms` have passed: prints `quiet` then. */
UNUSED static void watch_all(int fd, struct watch *w, int ms) {
    int64_t until = now_ms() + ms;
    for (;;) {
        int r = watch_one(fd, w, until);
        if (r == 0) return;
        if (r == -2) { say("%squiet", w->tag ? w->tag : ""); return; }
    }
}

/* Watches until the first SVID: 1, or the end of the call: 0. */
UNUSED static int watch_svid(int fd, struct watch *w, int ms) {
    int before = w->svids;
    int64_t until = now_ms() + ms;
    w->ended = 0;
    while (!w->ended && w->svids == before)
        if (watch_one(fd, w, until) <= 0) return 0;
    return w->svids > before;
}

#define PATIENCE_MS 15000

/* The plain call: ask, report until the call or the connection ends. */
UNUSED static void call_and_watch(const char *path) {
    struct watch w = {0};
    int fd = connect_to(path);
    if (ask_first(fd)) { say("eof"); return; }
    int64_t until = now_ms() + PATIENCE_MS;
    while (!w.ended)
        if (watch_one(fd, &w, until) == -2) { say("quiet"); return; }
}

/* Copies a file. */
UNUSED static void copy_to_fd(const char *from, int to) {
    char buffer[65536];
    int in = open(from, O_RDONLY | O_CLOEXEC);
    if (in < 0) die(from);
    for (ssize_t n; (n = read(in, buffer, sizeof buffer)) > 0;)
        if (write(to, buffer, n) != n) die("copy");
    close(in);
}
#endif
