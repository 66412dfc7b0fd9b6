/* A library that does nothing, for LD_PRELOAD (threat F07). */
int mayfly_preloaded = 1;

int mayfly_preloaded_function(int n) { return n + mayfly_preloaded; }
