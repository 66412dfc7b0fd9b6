/* A client asks and dies; its process id is given to a program that has an identity (threats A01, A02).
 *
 *   reuse SOCK ROUNDS UID IMPOSTOR_UID IMPOSTOR    (root)
 *
 * Each round: a child of uid UID connects a socket that we keep, sends a whole request and exits; the next
 * process to get its pid execs IMPOSTOR as IMPOSTOR_UID. `round PID` when that is done, `missed` when the
 * pid was not to be had. At "go" (the agent was stopped until now) every kept connection is read to its end:
 * `answered` for each message that came, then `done CONNECTIONS ANSWERS`.
 *
 *   reuse take PID UID PROGRAM                      (root)
 *
 * Runs PROGRAM as UID under that process id, which must be free: `taken`.
 */
#include "common.h"

/* Lets the next process have `pid`. */
static void aim(pid_t pid) {
    char text[16];
    int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
    int n = snprintf(text, sizeof text, "%d", pid - 1);
    if (fd < 0 || write(fd, text, n) != n) die("ns_last_pid");
    close(fd);
}

/* A process with that pid, running `program`; -1 when somebody else keeps getting the number. */
static pid_t take(pid_t wanted, uid_t uid, const char *program) {
    for (int attempt = 0; attempt < 400; attempt++) {
        aim(wanted);
        pid_t pid = fork();
        if (pid == 0) {
            if (getpid() != wanted) _exit(0);
            become(uid);
            execl(program, program, "nap", NULL);
            _exit(0);
        }
        if (pid == wanted) return pid;
        waitpid(pid, NULL, 0);
    }
    return -1;
}

/* A child of uid `uid` asks on a socket that we keep, and is gone. */
static pid_t ask_and_die(int fd, const char *sock, uid_t uid) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, sock, sizeof address.sun_path - 1);
    int status;
    pid_t victim = fork();
    if (victim == 0) {
        become(uid);
        /* connect() makes this process the peer, whoever made the socket. */
        if (connect(fd, (struct sockaddr *)&address, sizeof address) || ask_first(fd)) _exit(1);
        _exit(0);
    }
    waitpid(victim, &status, 0);
    return status ? -1 : victim;
}

int main(int argc, char **argv) {
    die_with_parent();
    if (argc == 5 && !strcmp(argv[1], "take")) {
        pid_t pid = take(atoi(argv[2]), atoi(argv[3]), argv[4]);
        say(pid > 0 ? "taken" : "missed");
        wait_go();
        return 0;
    }
    if (argc < 6) return 2;
    int rounds = atoi(argv[2]), kept[1024], impostors[1024], count = 0;
    for (int i = 0; i < rounds && count < 1024; i++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        pid_t victim = ask_and_die(fd, argv[1], atoi(argv[3]));
        if (victim < 0) { say("unconnected"); close(fd); continue; }
        pid_t heir = take(victim, atoi(argv[4]), argv[5]);
        if (heir < 0) { say("missed"); close(fd); continue; }
        kept[count] = fd;
        impostors[count++] = heir;
    }
    say("ready %d", count);
    wait_go();
    int answers = 0;
    for (int i = 0; i < count; i++) {
        struct watch w = {.quiet = 1};
        while (watch_one(kept[i], &w, now_ms() + 5000) == 1) continue;
        answers += w.svids;
        close(kept[i]);
    }
    for (int i = 0; i < count; i++) { kill(impostors[i], SIGKILL); waitpid(impostors[i], NULL, 0); }
    say("done %d %d", count, answers);
    return 0;
}
