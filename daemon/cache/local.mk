# Layer 4: which adapters are in memory, who uses them, what is evicted.
noinst_LTLIBRARIES += daemon/cache/libcache.la
daemon_cache_libcache_la_SOURCES = \
	daemon/cache/cache-internal.h \
	daemon/cache/cache.c daemon/cache/cache.h \
	daemon/cache/evict.c \
	daemon/cache/policy.c daemon/cache/policy.h \
	daemon/cache/stats.c \
	daemon/cache/upload.c
daemon_cache_libcache_la_LIBADD = -lm
