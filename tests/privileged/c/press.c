/* Load that a stranger can put on the socket (threats D05, E03, E05, E13).
 *
 *   press half SOCK nothing|preface|settings   opens that much of a connection; `closed MS` when it ends
 *   press flood SOCK                           connects as fast as it can until "go", keeping what it can
 *   press fill SOCK COUNT                      opens COUNT connections and keeps them until "go"
 *   press first SOCK COUNT                     COUNT processes, one after another: `us N` from before connect()
 *                                              to the first SVID of each
 *   press again SOCK COUNT                     one process that holds a stream connects COUNT times more: `us N`
 *   press storm SOCK COUNT                     COUNT processes get an SVID each; "go": all die at once
 */
#include "common.h"

static void half(const char *sock, const char *how) {
    int fd = connect_to(sock);
    size_t n = !strcmp(how, "preface") ? H2_PREFACE_LENGTH / 2 : !strcmp(how, "settings") ? H2_OPEN_LENGTH : 0;
    if (n && write_all(fd, H2_OPEN, n)) die("write");
    int64_t start = now_ms();
    char buffer[4096];
    say("waiting");
    while (read(fd, buffer, sizeof buffer) > 0) continue;
    say("closed %lld", (long long)(now_ms() - start));
}

static void flood(const char *sock) {
    enum { KEEP = 900 };
    static int kept[KEEP];
    long made = 0, refused = 0;
    memset(kept, -1, sizeof kept);
    say("flooding");
    for (struct pollfd order = {.fd = 0, .events = POLLIN}; !poll(&order, 1, 0);) {
        int fd = try_connect(sock, SOCK_NONBLOCK);
        if (fd < 0) { refused++; continue; }
        int *slot = &kept[made++ % KEEP];
        if (*slot >= 0) close(*slot);
        *slot = fd;
    }
    say("flooded %ld %ld", made, refused);
}

static void fill(const char *sock, int count) {
    int made = 0;
    for (int i = 0; i < count; i++) {
        int fd = try_connect(sock, 0);
        if (fd < 0) break;
        /* Whole requests: a connection that only opens would be closed as half-open. */
        made += !ask_first(fd);
    }
    say("filled %d", made);
    wait_go();
}

/* As every client must, it tries again when the agent is busy (UNAVAILABLE): a program that was installed less than
 * two seconds ago is measured anew for each of its processes, a few of one user at a time. */
static int got_svid(const char *sock, struct watch *w) {
    for (int64_t end = now_ms() + 120000; now_ms() < end; sleep_ms(100)) {
        int fd = connect_to(sock);
        if (!ask_first(fd) && watch_svid(fd, w, 120000)) return fd;
        close(fd);
    }
    return -1;
}

static void storm(const char *sock, int count) {
    pid_t *pids = calloc(count, sizeof *pids);
    int done[2];
    if (pipe(done)) die("pipe");
    for (int i = 0; i < count; i++) {
        pids[i] = fork();
        if (pids[i] < 0) die("fork");
        if (pids[i] == 0) {
            die_with_parent();
            close(done[0]);
            struct watch w = {.silent = 1, .reading = 1};
            int fd = got_svid(sock, &w);
            char outcome = fd < 0 ? 'n' : 'y';
            if (write(done[1], &outcome, 1) != 1) _exit(1);
            close(done[1]);
            while (fd >= 0 && watch_one(fd, &w, now_ms() + 1000000000) > 0) continue;
            for (;;) pause();
        }
        /* A few at a time: what is measured is the end, not the beginning. */
        if (i >= 32) {
            char outcome;
            if (read(done[0], &outcome, 1) != 1 || outcome != 'y') { say("refused"); _exit(1); }
        }
    }
    for (int i = 0; i < (count < 32 ? count : 32); i++) {
        char outcome;
        if (read(done[0], &outcome, 1) != 1 || outcome != 'y') { say("refused"); _exit(1); }
    }
    say("ready");
    wait_go();
    for (int i = 0; i < count; i++) kill(pids[i], SIGKILL);
    for (int i = 0; i < count; i++) waitpid(pids[i], NULL, 0);
    say("dead");
    wait_go();
}

static long long now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

/* From before connect() to the first bytes of an answer that carries an SVID. */
static int timed_call(const char *sock) {
    struct watch w = {.silent = 1};
    long long start = now_us();
    int fd = connect_to(sock);
    if (ask_first(fd) || !watch_svid(fd, &w, PATIENCE_MS)) { say("refused"); _exit(1); }
    say("us %lld", now_us() - start);
    return fd;
}

static void first(const char *sock, int count) {
    int done[2];
    if (pipe(done)) die("pipe");
    for (int i = 0; i < count; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            die_with_parent();
            timed_call(sock);
            if (write(done[1], "y", 1) != 1) _exit(1);
            /* One lives on, as of a program that runs anyway: while it does, its hash is known. */
            if (i == 0) for (;;) pause();
            _exit(0);
        }
        char outcome;
        if (i == 0) {
            if (read(done[0], &outcome, 1) != 1) _exit(1);
            continue;
        }
        int status;
        waitpid(pid, &status, 0);
        if (status) _exit(1);
        /* The revocation that this exit brings about is not what is measured here. */
        sleep_ms(60);
    }
    say("end");
}

static void again(const char *sock, int count) {
    timed_call(sock); /* kept open: the identity is there from now on */
    for (int i = 0; i < count; i++) close(timed_call(sock));
    say("end");
    wait_go();
}

int main(int argc, char **argv) {
    if (argc < 3 || (argc < 4 && strcmp(argv[1], "flood"))) { say("usage: see the head of press.c"); return 2; }
    die_with_parent();
    if (!strcmp(argv[1], "half")) half(argv[2], argv[3]);
    else if (!strcmp(argv[1], "flood")) flood(argv[2]);
    else if (!strcmp(argv[1], "fill")) fill(argv[2], atoi(argv[3]));
    else if (!strcmp(argv[1], "storm")) storm(argv[2], atoi(argv[3]));
    else if (!strcmp(argv[1], "first")) first(argv[2], atoi(argv[3]));
    else if (!strcmp(argv[1], "again")) again(argv[2], atoi(argv[3]));
    else return 2;
    return 0;
}
