/* Who is at the other end? Odd ways to make and to use a connection (threats A04-A10, A13).
 *
 *   peer call SOCK                 asks and reports until the end
 *   peer thread SOCK               a thread connects, the main thread exits, the thread asks again
 *   peer fork SOCK                 "go": the attested parent exits, its child reads on
 *   peer vfork SOCK                a vfork child connects while its parent stands still
 *   peer writer SOCK child         a child of the attested process writes a request
 *   peer writer SOCK thread        another thread of it does
 *   peer writer SOCK uid UID       (root) a process of another uid gets the socket by SCM_RIGHTS and writes
 *   peer setuid SOCK A B           (root) connects as uid A, becomes B, asks again
 *   peer ids SOCK R E S            (root) real, effective and saved uid differ
 *   peer userns SOCK               calls as uid 0 of a user namespace of its own
 *   peer forge SOCK PID UID        (root) claims another pid and uid by SCM_CREDENTIALS
 *   peer setuid-program SOCK       calls as a set-user-id program would (reports its three uids)
 */
#include "common.h"

static const char *sock;

static int first_svid(struct watch *w) {
    int fd = connect_to(sock);
    if (ask_first(fd)) die("ask");
    if (!watch_svid(fd, w, PATIENCE_MS)) { say("refused"); exit(0); }
    return fd;
}

/* --- A06 */
static pthread_t leader;

static void *threaded(void *unused) {
    (void)unused;
    struct watch w = {0};
    int fd = first_svid(&w);
    say("connected %d %d", getpid(), (int)syscall(SYS_gettid));
    /* The main thread ends when this line comes. */
    wait_go();
    pthread_kill(leader, SIGUSR1);
    pthread_join(leader, NULL);
    say("leader-gone");
    if (ask_again(fd, 3)) say("eof");
    else watch_svid(fd, &w, PATIENCE_MS);
    say("asked-again");
    watch_all(fd, &w, PATIENCE_MS);
    _exit(0);
}

static void leave(int signal) {
    (void)signal;
    syscall(SYS_exit, 0);
}

static void in_thread(void) {
    pthread_t worker;
    leader = pthread_self();
    signal(SIGUSR1, leave);
    sigset_t mask, old;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &mask, &old);
    pthread_create(&worker, NULL, threaded, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    for (;;) pause();
}

/* --- A04 */
static void forked(void) {
    struct watch w = {0};
    int alive[2];
    int fd = first_svid(&w);
    if (pipe(alive)) die("pipe");
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, 0);
        close(alive[1]);
        /* Whatever was on its way while the parent lived does not count. */
        struct watch child = {.quiet = 1, .tag = "child-early-"};
        struct pollfd parent = {alive[0], POLLIN, 0};
        while (poll(&parent, 1, 0) == 0) watch_one(fd, &child, now_ms() + 20);
        say("parent-gone");
        child = (struct watch){.quiet = 1, .tag = "child-"};
        watch_all(fd, &child, PATIENCE_MS);
        _exit(0);
    }
    close(alive[0]);
    say("ready");
    wait_go();
    _exit(0);
}

/* --- A07 */
static void vforked(void) {
    pid_t parent = getpid();
    pid_t child = vfork();
    if (child == 0) {
        struct watch w = {0};
        int fd = first_svid(&w);
        say("pids %d %d", getpid(), parent);
        watch_all(fd, &w, 300);
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

/* --- A05 */
static int passed_fd;

static void *write_in_thread(void *unused) {
    (void)unused;
    say("wrote %d", ask_again(passed_fd, 3));
    return NULL;
}

static void send_fd(int over, int fd) {
    char byte = 'f', control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    if (sendmsg(over, &message, 0) != 1) die("sendmsg");
}

static int receive_fd(int over) {
    char byte, control[CMSG_SPACE(sizeof(int))];
    int fd = -1;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    if (recvmsg(over, &message, 0) != 1) die("recvmsg");
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static void other_writer(const char *kind, const char *uid) {
    struct watch w = {0};
    int pair[2];
    /* The receiver exists first, as a stranger: the socket reaches it only as a message. */
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) die("socketpair");
    pid_t other = uid ? fork() : -1;
    if (other == 0) {
        close(pair[0]);
        become(atoi(uid));
        int fd = receive_fd(pair[1]);
        say("wrote %d", ask_again(fd, 3));
        sleep_ms(PATIENCE_MS);
        _exit(0);
    }
    passed_fd = first_svid(&w);
    if (uid) send_fd(pair[0], passed_fd);
    else if (!strcmp(kind, "thread")) {
        pthread_t thread;
        pthread_create(&thread, NULL, write_in_thread, NULL);
        pthread_join(thread, NULL);
    } else if ((other = fork()) == 0) {
        die_with_parent();
        write_in_thread(NULL);
        sleep_ms(PATIENCE_MS);
        _exit(0);
    }
    watch_all(passed_fd, &w, 1500);
    if (other > 0) { kill(other, SIGKILL); waitpid(other, NULL, 0); }
}

/* --- A08 */
static void change_uid(uid_t before, uid_t after) {
    struct watch w = {0};
    /* Keep the capabilities, so that a second change is possible. */
    if (prctl(PR_SET_SECUREBITS, 1 << 2)) die("securebits"); /* SECBIT_NO_SETUID_FIXUP */
    if (setgroups(0, NULL) || setresgid(before, before, before) || setresuid(before, before, before)) die("A");
    int fd = first_svid(&w);
    if (setresgid(after, after, after) || setresuid(after, after, after)) die("B");
    say("changed");
    if (ask_again(fd, 3)) say("eof");
    else watch_all(fd, &w, PATIENCE_MS);
}

/* --- A10 */
static void put_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) die(path);
    close(fd);
}

static void in_user_namespace(void) {
    char map[64];
    uid_t uid = getuid();
    gid_t gid = getgid();
    if (unshare(CLONE_NEWUSER)) die("unshare");
    snprintf(map, sizeof map, "0 %u 1", uid);
    put_file("/proc/self/uid_map", map);
    put_file("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", gid);
    put_file("/proc/self/gid_map", map);
    say("uid-inside %d", getuid());
    call_and_watch(sock);
}

/* --- A13 */
static void forge(pid_t pid, uid_t uid) {
    uint8_t out[640];
    struct watch w = {0};
    memcpy(out, H2_OPEN, H2_OPEN_LENGTH);
    size_t n = H2_OPEN_LENGTH + put_request(out + H2_OPEN_LENGTH, 1, FETCH_X509, "", 0);
    int fd = connect_to(sock);
    struct ucred claim = {pid, uid, uid};
    char control[CMSG_SPACE(sizeof claim)] = {0};
    struct iovec data = {out, n};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_CREDENTIALS;
    head->cmsg_len = CMSG_LEN(sizeof claim);
    memcpy(CMSG_DATA(head), &claim, sizeof claim);
    ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
    say("forged %s", sent < 0 ? strerror(errno) : "ok");
    if (sent > 0) watch_all(fd, &w, 3000);
}

int main(int argc, char **argv) {
    if (argc < 3) { say("usage: see the head of peer.c"); return 2; }
    const char *mode = argv[1];
    sock = argv[2];
    die_with_parent();
    if (!strcmp(mode, "call")) call_and_watch(sock);
    else if (!strcmp(mode, "thread")) in_thread();
    else if (!strcmp(mode, "fork")) forked();
    else if (!strcmp(mode, "vfork")) vforked();
    else if (!strcmp(mode, "writer") && argc > 3) other_writer(argv[3], argc > 4 ? argv[4] : NULL);
    else if (!strcmp(mode, "setuid") && argc > 4) change_uid(atoi(argv[3]), atoi(argv[4]));
    else if (!strcmp(mode, "ids") && argc > 5) {
        uid_t e = atoi(argv[4]);
        if (setgroups(0, NULL) || setresgid(e, e, e)) die("setresgid");
        if (setresuid(atoi(argv[3]), e, atoi(argv[5]))) die("setresuid");
        call_and_watch(sock);
    } else if (!strcmp(mode, "userns")) in_user_namespace();
    else if (!strcmp(mode, "forge") && argc > 4) forge(atoi(argv[3]), atoi(argv[4]));
    else if (!strcmp(mode, "setuid-program")) {
        uid_t r, e, s;
        getresuid(&r, &e, &s);
        say("uids %d %d %d", r, e, s);
        call_and_watch(sock);
    } else return 2;
    return 0;
}
