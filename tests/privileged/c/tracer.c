/* Holds another process by ptrace (threats B06, D03).
 *
 *   tracer trace PID      traces it and lets it run: `tracing`; ends at end of input
 *   tracer exitstop PID   stops it at the moment it exits: `tracing`, then `held` when it was killed; "go" lets go
 */
#include "common.h"
#include <sys/ptrace.h>

int main(int argc, char **argv) {
    if (argc < 3) return 2;
    pid_t pid = atoi(argv[2]);
    int exit_stop = !strcmp(argv[1], "exitstop"), status;
    die_with_parent();
    if (ptrace(PTRACE_SEIZE, pid, NULL, exit_stop ? PTRACE_O_TRACEEXIT : 0)) die("seize");
    say("tracing");
    if (exit_stop) {
        if (waitpid(pid, &status, __WALL) != pid) die("wait");
        say("held %d", WIFSTOPPED(status));
    }
    wait_go();
    return 0;
}
