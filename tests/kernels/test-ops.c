/* SPDX-License-Identifier: MIT */
/*
 * The ops table test: op x backend x shape x format against the scalar reference, and the promise that a row's bits
 * depend on that row alone. On the CPU every backend the machine has is tried, and the reference against itself for the
 * promise; on a GPU (see fixture.h) the promise is kept by all but cuBLAS. AVX-512 and what came after it are tried
 * everywhere, simulated (tests/isasim).
 */
#include "tests/kernels/ops.h"

#include <stdio.h>

#include "tests/kernels/fixture.h"
#include "tests/lib/run-suite.h"

int main(void)
{
	static const struct { const char *name; void (*add)(TCase *tc); } families[] = {
		{ "matmul", matmul_tests },
		{ "rows", row_tests },
		{ "adapters", adapter_tests },
		{ "attention", attention_tests },
	};
	Suite *suite = suite_create("ops");

	if (!fixture_backend(0)) {
		puts("no backend to test: the simulated ones want libsimde-dev at configure and a processor with AVX2");
		return 77;
	}
	fixture_seed(7);
	for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
		TCase *tc = tcase_create(families[i].name);
		tcase_set_timeout(tc, 0);
		tcase_add_checked_fixture(tc, fixture_set_up, fixture_tear_down);
		families[i].add(tc);
		suite_add_tcase(suite, tc);
	}
	return run_suite(suite);
}
