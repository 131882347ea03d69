/* SPDX-License-Identifier: MIT */
/* Errors that tests ask for, by name of the call and when it comes; numbers of the environment. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime.h"

#define FAULTS 16

static struct fault {
	char name[32];
	unsigned long left; /* calls until it comes; 0: none */
	int error;
} faults[FAULTS];

unsigned long cudasim_number(const char *name, unsigned long fallback)
{
	const char *text = getenv(name);
	char *end;
	unsigned long n;

	if (!text || !*text)
		return fallback;
	n = strtoul(text, &end, 10);
	n <<= *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
	return n;
}

/* The error that a function reports most often, for faults that name none. */
static int usual_error(const char *name)
{
	static const struct {
		const char *name;
		int error;
	} usual[] = {
		{ "Malloc", cudaErrorMemoryAllocation },   { "HostAlloc", cudaErrorMemoryAllocation },
		{ "HostRegister", cudaErrorNotSupported }, { "GetDeviceCount", cudaErrorNoDevice },
		{ "SetDevice", cudaErrorInvalidDevice },   { "LaunchKernelExC", cudaErrorLaunchOutOfResources },
		{ "async", cudaErrorLaunchFailure },	   { "BlasCreate", CUBLAS_STATUS_ALLOC_FAILED },
	};

	for (size_t i = 0; i < sizeof(usual) / sizeof(*usual); ++i)
		if (strcmp(name, usual[i].name) == 0)
			return usual[i].error;
	return strncmp(name, "Blas", 4) == 0 ? (int)CUBLAS_STATUS_EXECUTION_FAILED : (int)cudaErrorUnknown;
}

static bool is_name(const char *name)
{
#define IS_NAME(function) strcmp(name, #function) == 0 ||
	return CUDASIM_RUNTIME(IS_NAME) strcmp(name, "async") == 0 || strcmp(name, "cuda_api") == 0;
#undef IS_NAME
}

void cudasim_add_faults(const char *spec)
{
	while (*spec) {
		struct fault new = { .error = -1 };
		size_t i = 0;
		int n = 0;

		if (sscanf(spec, "%31[A-Za-z_]:%lu%n:%d%n", new.name, &new.left, &n, &new.error, &n) < 2 ||
		    new.left == 0 || !is_name(new.name) || (spec[n] && spec[n] != ',')) {
			(void)cudasim_broken("\"%s\" is no fault to inject", spec);
			return;
		}
		if (new.error < 0)
			new.error = usual_error(new.name);
		while (i < FAULTS && faults[i].left > 0)
			++i;
		if (i == FAULTS)
			abort();
		faults[i] = new;
		spec += n + (spec[n] == ',');
	}
}

/* Return: the error that was asked for here, 0: none. */
int cudasim_fault(const char *name)
{
	int error = 0;

	for (size_t i = 0; i < FAULTS; ++i)
		if (faults[i].left > 0 && strcmp(faults[i].name, name) == 0 && --faults[i].left == 0)
			error = faults[i].error;
	return error;
}

void cudasim_clear_faults(void)
{
	memset(faults, 0, sizeof(faults));
}
