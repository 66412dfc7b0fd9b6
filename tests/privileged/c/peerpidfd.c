/* Runs the agent with getsockopt(SO_PEERPIDFD) under our control (threat A03).
 *
 *   peerpidfd POLICY -- COMMAND…
 *
 * The file POLICY holds an errno in decimal: 0 lets the call through, anything else is its failure. It is read
 * at each call. The command runs in this process, so that its pid is the one the test knows; a child of it
 * answers the kernel's questions and ends with it.
 */
#include "common.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>

#define PEERPIDFD 77 /* SO_PEERPIDFD */

static int policy(const char *path) {
    char text[16] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, text, sizeof text - 1) < 0) text[0] = 0;
    if (fd >= 0) close(fd);
    return atoi(text);
}

static int install(void) {
    struct sock_filter program[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getsockopt, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, PEERPIDFD, 0, 2),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
    int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
    if (fd < 0) die("seccomp");
    return fd;
}

static void answer(int fd, const char *path) {
    for (;;) {
        struct seccomp_notif question;
        struct pollfd ready = {fd, POLLIN, 0};
        poll(&ready, 1, -1);
        if (ready.revents & (POLLHUP | POLLERR)) _exit(0); /* the last filtered task is gone */
        memset(&question, 0, sizeof question);
        if (ioctl(fd, SECCOMP_IOCTL_NOTIF_RECV, &question)) {
            if (errno == EINTR || errno == ENOENT) continue;
            _exit(0);
        }
        int failure = policy(path);
        struct seccomp_notif_resp reply = {.id = question.id, .error = -failure};
        if (!failure) reply.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        ioctl(fd, SECCOMP_IOCTL_NOTIF_SEND, &reply);
    }
}

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    int pair[2];
    if (pipe(pair)) die("pipe");
    /* The child is made before the filter, so that it is free of it; it takes the listener by its number. */
    pid_t target = getpid();
    pid_t child = fork();
    if (child == 0) {
        int number;
        close(pair[1]);
        if (read(pair[0], &number, sizeof number) != sizeof number) _exit(1);
        int pidfd = syscall(SYS_pidfd_open, target, 0);
        int fd = syscall(SYS_pidfd_getfd, pidfd, number, 0);
        if (fd < 0) _exit(1);
        for (int i = 0; i < 3; i++) close(i);
        close(pidfd);
        answer(fd, argv[1]);
    }
    int fd = install();
    if (write(pair[1], &fd, sizeof fd) != sizeof fd) die("tell");
    sleep_ms(50); /* the child has its copy before exec closes ours */
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    close(pair[0]);
    close(pair[1]);
    execv(argv[3], argv + 3);
    execvp(argv[3], argv + 3);
    die("exec");
}
