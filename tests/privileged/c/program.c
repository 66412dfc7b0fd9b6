/* Which program is it? Ways to become, or to look like, another one (threats B01-B08).
 *
 *   program call SOCK               asks and reports until the end
 *   program late SOCK               the same at "go", with all its pages in memory by then
 *   program held FD                 goes on reading a connection it inherited by exec
 *   program ask FD                  asks again on a connection it inherited by exec
 *   program exec SOCK PATH MODE     gets an SVID; at "go" execs PATH MODE FD, keeping the connection
 *   program exec-early SOCK PATH MODE   the same, but "go" may come before the SVID
 *   program thread-exec SOCK PATH   the same as exec, but a second thread does it
 *   program memfd SOCK NAME         runs from a memfd of that name, then calls
 *   program unlink SOCK PATH        removes its own file, then calls
 *   program bind SOCK EVIL TARGET [UID]   bind-mounts EVIL over TARGET in a mount namespace of its own and
 *                                   runs TARGET; without UID in a user namespace, with it (root) without
 *   program forge SOCK EXE inside   makes /proc/self/exe be EXE from inside a user namespace
 *   program forge SOCK EXE helper   lets a helper in a user namespace do it: the caller stays outside
 *   program forge-later SOCK EXE    gets an SVID first; at "go" forges, then asks again
 *   program nap                     does nothing
 */
#include "common.h"

static char self[4096];

/* --- PR_SET_MM_MAP: the executable file of a process is whatever it says ------------------------------ */

struct layout {
    uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack;
    uint64_t arg_start, arg_end, env_start, env_end;
    uint64_t *auxv;
    uint32_t auxv_size, exe_fd;
};

/* The kernel refuses while any mapping of the old executable is left: put anonymous copies in their place. */
static void leave_own_file(void) {
    struct { unsigned long from, to; int protection; } parts[32];
    int count = 0;
    char line[4300], rights[8];
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps) die("maps");
    while (fgets(line, sizeof line, maps) && count < 32) {
        unsigned long from, to;
        if (!strstr(line, self) || sscanf(line, "%lx-%lx %7s", &from, &to, rights) != 3) continue;
        parts[count].from = from;
        parts[count].to = to;
        parts[count++].protection = (rights[0] == 'r' ? PROT_READ : 0) | (rights[1] == 'w' ? PROT_WRITE : 0) |
                                    (rights[2] == 'x' ? PROT_EXEC : 0);
    }
    fclose(maps);
    for (int i = 0; i < count; i++) {
        size_t size = parts[i].to - parts[i].from;
        void *copy = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (copy == MAP_FAILED) die("mmap");
        memcpy(copy, (void *)parts[i].from, size);
        mprotect(copy, size, parts[i].protection);
        if (mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)parts[i].from) == MAP_FAILED)
            die("mremap");
    }
}

static int set_executable(const char *path) {
    struct layout l = {0};
    unsigned long field[60] = {0};
    char stat[2048];
    int fd = open("/proc/self/stat", O_RDONLY);
    ssize_t n = read(fd, stat, sizeof stat - 1);
    close(fd);
    stat[n > 0 ? n : 0] = 0;
    char *rest = strrchr(stat, ')') + 2, *save = NULL;
    int i = 3;
    for (char *word = strtok_r(rest, " ", &save); word && i < 60; word = strtok_r(NULL, " ", &save))
        field[i++] = strtoul(word, NULL, 10);
    l.start_code = field[26]; l.end_code = field[27]; l.start_stack = field[28];
    l.start_data = field[45]; l.end_data = field[46]; l.start_brk = field[47];
    l.brk = (uint64_t)sbrk(0);
    l.arg_start = field[48]; l.arg_end = field[49]; l.env_start = field[50]; l.env_end = field[51];
    l.exe_fd = open(path, O_RDONLY);
    int failed = prctl(PR_SET_MM, PR_SET_MM_MAP, &l, sizeof l, 0);
    int why = errno;
    close(l.exe_fd);
    errno = why;
    return failed;
}

struct order { const char *path; int failed, why; };

static int helper(void *argument) {
    struct order *order = argument;
    order->failed = set_executable(order->path);
    order->why = errno;
    _exit(0);
}

static void forge(const char *path, int inside) {
    static struct order order;
    leave_own_file();
    order.path = path;
    if (inside) {
        if (unshare(CLONE_NEWUSER)) die("unshare");
        order.failed = set_executable(path);
        order.why = errno;
    } else {
        char *stack = mmap(NULL, 1 << 17, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        pid_t pid = clone(helper, stack + (1 << 17), CLONE_VM | CLONE_NEWUSER | SIGCHLD, &order);
        if (pid < 0) die("clone");
        waitpid(pid, NULL, 0);
    }
    say("forged %s", order.failed ? strerror(order.why) : "ok");
}

/* --- exec ---------------------------------------------------------------------------------------------- */

static const char *next_path, *next_mode;
static char fd_text[16];

static void *become_next(void *unused) {
    (void)unused;
    execl(next_path, next_path, next_mode, fd_text, NULL);
    die("exec");
    return NULL;
}

static void exec_with_connection(const char *sock, int by_thread, int early) {
    struct watch w = {0};
    int fd = connect_to(sock);
    if (ask_first(fd)) die("ask");
    if (!early && !watch_svid(fd, &w, PATIENCE_MS)) { say("refused"); return; }
    snprintf(fd_text, sizeof fd_text, "%d", fd);
    say("ready");
    wait_go();
    if (!by_thread) { become_next(NULL); return; }
    pthread_t thread;
    pthread_create(&thread, NULL, become_next, NULL);
    for (;;) pause();
}

static void from_memfd(const char *sock, const char *name) {
    int fd = syscall(SYS_memfd_create, name, 0);
    if (fd < 0) die("memfd_create");
    copy_to_fd(self, fd);
    char *arguments[] = {(char *)name, "call", (char *)sock, NULL}, *environment[] = {NULL};
    syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
    die("execveat");
}

static void bind_over(const char *sock, const char *evil, const char *target, const char *uid) {
    if (unshare(uid ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS)) die("unshare");
    if (uid && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL)) die("private");
    if (mount(evil, target, NULL, MS_BIND, NULL)) die("bind");
    if (uid) become(atoi(uid));
    execl(target, target, "call", sock, NULL);
    die("exec");
}

int main(int argc, char **argv) {
    if (argc < 2) { say("usage: see the head of program.c"); return 2; }
    const char *mode = argv[1], *third = argc > 3 ? argv[3] : "";
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    die_with_parent();
    if (!strcmp(mode, "nap")) for (;;) pause();
    else if (argc < 3) return 2;
    else if (!strcmp(mode, "call")) call_and_watch(argv[2]);
    else if (!strcmp(mode, "late")) {
        if (mlockall(MCL_CURRENT)) die("mlockall");
        say("ready");
        wait_go();
        call_and_watch(argv[2]);
    } else if (!strcmp(mode, "held") || !strcmp(mode, "ask")) {
        struct watch w = {.quiet = 0, .tag = "after-"};
        say("running-next");
        if (!strcmp(mode, "ask") && ask_again(atoi(argv[2]), 3)) say("after-eof");
        watch_all(atoi(argv[2]), &w, PATIENCE_MS);
        /* Stay: the process is alive, only its identity is gone. */
        wait_go();
    } else if (!strcmp(mode, "exec") || !strcmp(mode, "thread-exec") || !strcmp(mode, "exec-early")) {
        next_path = third;
        next_mode = argc > 4 ? argv[4] : "held";
        exec_with_connection(argv[2], mode[0] == 't', !strcmp(mode, "exec-early"));
    } else if (!strcmp(mode, "memfd")) from_memfd(argv[2], third);
    else if (!strcmp(mode, "unlink")) {
        if (unlink(third)) die("unlink");
        call_and_watch(argv[2]);
    } else if (!strcmp(mode, "bind") && argc > 4) bind_over(argv[2], third, argv[4], argc > 5 ? argv[5] : NULL);
    else if (!strcmp(mode, "forge") && argc > 4) {
        forge(third, !strcmp(argv[4], "inside"));
        call_and_watch(argv[2]);
    } else if (!strcmp(mode, "forge-later")) {
        struct watch w = {0};
        int fd = connect_to(argv[2]);
        if (ask_first(fd) || !watch_svid(fd, &w, PATIENCE_MS)) { say("refused"); return 0; }
        wait_go();
        forge(third, 0);
        if (ask_again(fd, 3)) say("eof");
        else watch_all(fd, &w, PATIENCE_MS);
    } else return 2;
    return 0;
}
