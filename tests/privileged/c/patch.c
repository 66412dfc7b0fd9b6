/* Changes the bytes of a file through a shared mapping, as quietly as the file system lets it (B09, B10).
 *
 *   patch FILE OFFSET keep    maps the file now and keeps the mapping; each line on standard input flips one
 *                             bit at OFFSET: `flipped`
 *   patch FILE OFFSET once    reads the page, then stores through a new mapping, and ends: `flipped`
 */
#include "common.h"

int main(int argc, char **argv) {
    if (argc < 4) return 2;
    long offset = atol(argv[2]), page = offset & ~4095L;
    die_with_parent();
    int fd = open(argv[1], O_RDWR);
    if (fd < 0) die("open");
    volatile char *at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, page);
    if (at == MAP_FAILED) die("mmap");
    close(fd);
    at += offset - page;
    if (!strcmp(argv[3], "once")) {
        char before = *at; /* the page is in now; the store below moves no timestamp on tmpfs */
        *at = before ^ 1;
        say("flipped");
        return 0;
    }
    *at ^= 1;
    *at ^= 1; /* dirty now: the timestamp moves once, here */
    say("ready");
    char line[16];
    while (wait_line(line, sizeof line)) {
        *at ^= 1;
        say("flipped");
    }
    return 0;
}
