/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a fuzz target over the files of the folders given, without libFuzzer: so every build, gcc's
 * too, replays the corpora as an ordinary test.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

enum { INPUT_BYTES_MAX = 1 << 20 };

static int file_replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        fprintf(stderr, "replay: cannot open %s: %s\n", path, strerror(errno));
        return -1;
    }
    uint8_t *data = malloc(INPUT_BYTES_MAX);
    int result = -1;
    if (data != NULL) {
        size_t bytes = fread(data, 1, INPUT_BYTES_MAX, file);
        result = LLVMFuzzerTestOneInput(data, bytes);
        free(data);
    }
    fclose(file);
    return result;
}

static int folder_replay(const char *folder, unsigned *n_p)
{
    DIR *dir = opendir(folder);
    if (dir == NULL) {
        fprintf(stderr, "replay: cannot open %s: %s\n", folder, strerror(errno));
        return -1;
    }
    int result = 0;
    for (struct dirent *entry = readdir(dir); entry != NULL; entry = readdir(dir)) {
        char path[4096];
        if (entry->d_name[0] == '.')
            continue;
        snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
        if (file_replay(path) != 0)
            result = -1;
        ++*n_p;
    }
    closedir(dir);
    return result;
}

int main(int argc, char **argv)
{
    unsigned n = 0;
    int result = 0;
    for (int i = 1; i < argc; i++)
        if (folder_replay(argv[i], &n) != 0)
            result = 1;
    if (n == 0) {
        fprintf(stderr, "replay: no input; name folders that hold some\n");
        return 1;
    }
    printf("%u inputs\n", n);
    return result;
}
