/* What a process of the agent's own uid can take from it (threat F01). One line each: `NAME errno TEXT`,
 * `NAME taken` when it worked.
 *
 *   steal PID
 */
#include "common.h"
#include <sys/ptrace.h>
#include <sys/uio.h>

static void verdict(const char *name, long result) {
    if (result < 0) say("%s errno %s", name, strerror(errno));
    else say("%s taken", name);
}

static void try_file(const char *name, pid_t pid, const char *file) {
    char path[64], byte;
    snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
    int fd = open(path, O_RDONLY);
    /* mem has nothing at offset 0: opening it is the theft. */
    verdict(name, fd < 0 ? -1 : !strcmp(file, "mem") ? 0 : read(fd, &byte, 1));
    if (fd >= 0) close(fd);
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    pid_t pid = atoi(argv[1]);
    char byte, path[64], target[256];
    die_with_parent();
    verdict("ptrace", ptrace(PTRACE_SEIZE, pid, NULL, 0));
    struct iovec local = {&byte, 1}, remote = {(void *)0x400000, 1};
    long got = process_vm_readv(pid, &local, 1, &remote, 1, 0);
    /* EFAULT would mean that only the address was wrong. */
    if (got < 0 && errno == EFAULT) got = 0;
    verdict("process_vm_readv", got);
    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    verdict("pidfd_getfd", syscall(SYS_pidfd_getfd, pidfd, 3, 0));
    try_file("mem", pid, "mem");
    try_file("environ", pid, "environ");
    try_file("maps", pid, "maps");
    snprintf(path, sizeof path, "/proc/%d/fd/3", pid);
    verdict("fd", readlink(path, target, sizeof target));
    say("end");
    return 0;
}
