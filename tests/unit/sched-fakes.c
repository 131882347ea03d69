/* SPDX-License-Identifier: MIT */
/*
 * Stand-ins for model, KV cache, adapter cache, store and ipc
 *
 * The model's next token is a hash of all tokens whose "keys" lie in the sequence's blocks, of the adapters and their
 * scales, and of the number of the draw. A scheduler that loses a token, computes one twice at the wrong place, mixes up
 * adapters or counts draws differently after a preemption therefore changes the answer.
 */
#include "tests/unit/sched-fakes.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/store/store.h"

struct fakes fakes;
const char *const cache_state_names[_CACHE_STATE_N] = { "store", "loading", "host", "device", "unfit" };

static int draw_letter(uint32_t hash)
{
	return (int)('a' + hash % 26);
}

void fakes_reset(void)
{
	fakes = (struct fakes){ .draw = draw_letter };
	fakes_memory(4096, 0);
	for (unsigned i = 0; i < 8; ++i)
		fakes.adapter[i].number = (uint8_t)i;
}

/* ---- requests and what is sent ---- */

struct ipc_request *fake_request(struct ipc_session *session, uint64_t id, const char *prompt, unsigned n)
{
	struct ipc_request *request = calloc(1, sizeof(*request));

	*request = (struct ipc_request){
		.session = ipc_session_ref(session),
		.id = id,
		.arrived_ns = 1000 + id,
		.kind = IPC_GENERATE,
		.n_tokens = strlen(prompt),
		.max_tokens = n,
		.top_p = 1,
		.repetition_penalty = 1,
		.logprobs = -1,
		.ignore_eos = false,
	};
	request->tokens = calloc(request->n_tokens + 1, sizeof(uint32_t));
	for (size_t i = 0; i < request->n_tokens; ++i)
		request->tokens[i] = (uint8_t)prompt[i];
	fakes.requests++;
	return request;
}

void fake_adapter(struct ipc_request *request, unsigned number, float scale)
{
	struct ipc_adapter *adapter = &request->adapters[request->n_adapters++];

	(void)snprintf(adapter->name, sizeof(adapter->name), "a%u", number);
	adapter->scale = scale;
}

struct ipc_request *ipc_request_free(struct ipc_request *request)
{
	if (!request)
		return NULL;
	ipc_session_unref(request->session);
	for (uint32_t i = 0; i < request->n_stops; ++i)
		free(request->stop[i]);
	free(request->tokens);
	free(request->text);
	free(request);
	fakes.requests--;
	return NULL;
}

struct ipc_session *ipc_session_ref(struct ipc_session *session)
{
	session->refs++;
	return session;
}

struct ipc_session *ipc_session_unref(struct ipc_session *session)
{
	assert(session->refs);
	session->refs--;
	return NULL;
}

void ipc_flush(struct ipc_session *session)
{
	session->flushes++;
}

int ipc_send_token(struct ipc_session *session, uint64_t id, const struct ipc_token *token)
{
	if (!session->room)
		return IPC_E_FULL;
	session->room--;
	assert(session->n_sent < FAKE_SENT_MAX && token->text_bytes < 64);
	session->sent[session->n_sent].id = id;
	session->sent[session->n_sent].kind = 't';
	session->sent[session->n_sent].token = token->token;
	memcpy(session->sent[session->n_sent].text, token->text, token->text_bytes);
	session->sent[session->n_sent++].text[token->text_bytes] = '\0';
	return IPC_OK;
}

int ipc_send_scores(struct ipc_session *session, uint64_t id, const struct ipc_scores *scores)
{
	if (!session->room)
		return IPC_E_FULL;
	session->room--;
	assert(scores->n && scores->n <= IPC_SCORES_MAX);
	for (uint32_t i = 0; i < scores->n; ++i) {
		assert(session->n_sent < FAKE_SENT_MAX);
		session->sent[session->n_sent].id = id;
		session->sent[session->n_sent].kind = 's';
		session->sent[session->n_sent].token = scores->tokens[i];
		session->sent[session->n_sent++].logprob = scores->logprobs[i];
	}
	return IPC_OK;
}

int ipc_send_adapter(struct ipc_session *session, uint64_t id, const struct ipc_listed *adapter)
{
	(void)adapter;
	session->sent[session->n_sent].id = id;
	session->sent[session->n_sent++].kind = 'a';
	return IPC_OK;
}

int ipc_send_done(struct ipc_session *session, uint64_t id, const struct ipc_done *done)
{
	session->sent[session->n_sent].id = id;
	session->sent[session->n_sent].done = *done;
	session->sent[session->n_sent++].kind = 'd';
	return IPC_OK;
}

int ipc_send_error(struct ipc_session *session, uint64_t id, int code, uint32_t retry_ms, const char *text)
{
	session->sent[session->n_sent].id = id;
	session->sent[session->n_sent].code = code;
	session->sent[session->n_sent].retry_ms = retry_ms;
	(void)snprintf(session->sent[session->n_sent].text, 64, "%s", text);
	session->sent[session->n_sent++].kind = 'e';
	return IPC_OK;
}

size_t fake_text(const struct ipc_session *session, uint64_t id, char *to)
{
	size_t used = 0;

	*to = '\0';
	for (unsigned i = 0; i < session->n_sent; ++i)
		if (session->sent[i].id == id && session->sent[i].kind == 't')
			used += (size_t)sprintf(to + used, "%s", session->sent[i].text);
	return used;
}

unsigned fake_count(const struct ipc_session *session, uint64_t id, char kind)
{
	unsigned n = 0;

	for (unsigned i = 0; i < session->n_sent; ++i)
		n += session->sent[i].id == id && session->sent[i].kind == kind;
	return n;
}

const struct ipc_done *fake_done(const struct ipc_session *session, uint64_t id)
{
	for (unsigned i = 0; i < session->n_sent; ++i)
		if (session->sent[i].id == id && session->sent[i].kind == 'd')
			return &session->sent[i].done;
	return NULL;
}

/* ---- model and tokenizer ---- */

const struct model_config *model_config(const struct model *model)
{
	static const struct model_config config = {
		.geometry = { .vocab = FAKE_VOCAB }, .context = FAKE_CONTEXT, .stop = { 0 }, .n_stops = 1, .chat = CHAT_NONE
	};

	(void)model;
	return &config;
}

const struct tokenizer *model_tokenizer(const struct model *model)
{
	(void)model;
	return NULL;
}

bool tokenizer_is_special(const struct tokenizer *tokenizer, uint32_t token)
{
	(void)tokenizer;
	return token < 2;
}

const char *tokenizer_bytes(const struct tokenizer *tokenizer, uint32_t token, size_t *ret_bytes)
{
	static char bytes[FAKE_VOCAB];

	(void)tokenizer;
	bytes[token] = (char)token;
	*ret_bytes = 1;
	return &bytes[token];
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t bytes, uint32_t **ret, size_t *ret_n)
{
	(void)tokenizer;
	*ret = calloc(bytes, sizeof(uint32_t));
	for (size_t i = 0; i < bytes; ++i)
		(*ret)[i] = (uint8_t)text[i];
	*ret_n = bytes;
	return 0;
}

int chat_render(enum chat_template chat, const char *text, size_t bytes, char **ret, size_t *ret_bytes)
{
	(void)chat;
	*ret = strndup(text, bytes);
	*ret_bytes = bytes;
	return 0;
}

/* ---- KV: the blocks hold the tokens themselves ---- */

#define CACHE_BLOCKS_MAX 64

static struct pool *pool;
static void *region;
static struct pool_run of_cache[CACHE_BLOCKS_MAX];

static void must(bool is)
{
	if (!is)
		abort();
}

static void free_memory(void)
{
	while (fakes.cache_blocks)
		pool_release(pool, POOL_ADAPTERS, of_cache[--fakes.cache_blocks]);
	fakes.kv = kv_free(fakes.kv);
	pool = pool_free(pool);
	free(region);
	region = NULL;
}

void fakes_end(void)
{
	struct kv_stats stats;

	kv_read_stats(fakes.kv, &stats);
	must(!stats.used);
	free_memory();
}

void fakes_memory(unsigned blocks, unsigned cache_blocks)
{
	static const struct kv_shape shape = { .n_layers = 1, .n_kv_heads = 8, .head_dim = 64, .dtype = KERN_F32 };
	size_t bytes = (size_t)(blocks + cache_blocks) * POOL_PAGE, huge = 2u << 20;

	free_memory();
	region = aligned_alloc(huge, (bytes + huge - 1) / huge * huge);
	must(region && cache_blocks <= CACHE_BLOCKS_MAX);
	must(pool_new(&pool, region, bytes) == 0 && kv_new(&fakes.kv, pool, &shape) == 0);
	must(kv_layout(fakes.kv)->block_tokens == FAKE_BLOCK && kv_block_bytes(fakes.kv) == POOL_PAGE);
	for (; fakes.cache_blocks < cache_blocks; ++fakes.cache_blocks)
		must(pool_alloc(pool, POOL_ADAPTERS, 1, &of_cache[fakes.cache_blocks]) == POOL_OK);
}

static uint32_t *kv_token(const struct kv_seq *seq, uint32_t position)
{
	assert(position / FAKE_BLOCK < seq->n_blocks);
	return (uint32_t *)seq->block[position / FAKE_BLOCK] + position % FAKE_BLOCK;
}

/* ---- the step ---- */

static uint32_t mix(uint32_t hash, uint32_t value)
{
	return (hash ^ value) * 16777619u;
}

static uint32_t hash_of(const struct step_seq *seq, uint32_t end)
{
	uint32_t hash = 2166136261u;

	for (uint32_t i = 0; i < end; ++i)
		hash = mix(hash, *kv_token(seq->kv, i));
	for (uint32_t i = 0; i < seq->n_adapters; ++i) {
		assert(((const struct cache_adapter *)(const void *)seq->adapter[i].lora)->holds);
		hash = mix(hash, 1000u + ((const struct cache_adapter *)(const void *)seq->adapter[i].lora)->number);
		hash = mix(hash, (uint32_t)(seq->adapter[i].scale * 8));
	}
	return hash;
}

static void run_seq(const struct step_seq *seq)
{
	assert(seq->n_tokens && !seq->kv->n_blocks == 0);
	if (seq->copy_from)
		memcpy(seq->kv->block[seq->position / FAKE_BLOCK], seq->copy_from, FAKE_BLOCK * sizeof(uint32_t));
	for (uint32_t i = 0; i < seq->n_tokens; ++i)
		*kv_token(seq->kv, seq->position + i) = seq->token[i];
	if (seq->output == STEP_OUTPUT_LAST)
		seq->result[0].token =
			(uint32_t)fakes.draw(mix(hash_of(seq, seq->position + seq->n_tokens), seq->sampling.draw) >> 7);
	for (uint32_t i = 0; seq->output == STEP_OUTPUT_ALL && i < seq->n_tokens; ++i) {
		uint32_t target = i + 1 < seq->n_tokens ? seq->token[i + 1] : (uint32_t)seq->sampling.target;

		seq->result[i].logprob = -(float)(mix(hash_of(seq, seq->position + i + 1), target) % 1000);
	}
}

int step_run(struct step *step, struct step_seq *seqs, uint32_t n_seqs)
{
	bool seen[8] = { false };

	(void)step;
	fakes.last = (struct step_stats){ .seqs = n_seqs };
	for (uint32_t i = 0; i < n_seqs; ++i) {
		fakes.last.rows += seqs[i].n_tokens;
		for (uint32_t a = 0; a < seqs[i].n_adapters; ++a)
			seen[((const struct cache_adapter *)(const void *)seqs[i].adapter[a].lora)->number] = true;
		if (!fakes.step_result)
			run_seq(&seqs[i]);
	}
	for (int i = 0; i < 8; ++i)
		fakes.last.adapters += seen[i];
	return fakes.step_result;
}

void step_failure(const struct step *step, struct kern_failure *ret)
{
	(void)step;
	*ret = fakes.failure;
}

const struct step_stats *step_last(const struct step *step)
{
	(void)step;
	return &fakes.last;
}

/* ---- store and cache ---- */

bool store_name_valid(const char *name)
{
	return *name && !strpbrk(name, " /");
}

int store_find(struct store *store, const char *name, struct store_digest *ret_digest, struct store_record *ret_record)
{
	(void)store;
	if (name[0] != 'a' || name[1] < '0' || name[1] > '7' || name[2])
		return STORE_E_NOT_FOUND;
	*ret_record = (struct store_record){ .kind = IMAGE_KIND_LORA };
	*ret_digest = (struct store_digest){ { (uint8_t)(name[1] - '0') } };
	ret_record->digest = *ret_digest;
	return STORE_OK;
}

int store_each(struct store *store, int (*fn)(void *userdata, const char *name, const struct store_record *record),
	       void *userdata)
{
	struct store_record record = { .kind = IMAGE_KIND_LORA };

	(void)store;
	return fn(userdata, "a0", &record);
}

enum cache_state cache_state(struct cache *cache, const struct store_record *record)
{
	(void)cache;
	return fakes.adapter[record->digest.bytes[0]].result == CACHE_E_UNFIT ? CACHE_UNFIT : CACHE_STORE;
}

int cache_get(struct cache *cache, const struct store_digest *digest, struct cache_adapter **ret)
{
	(void)cache;
	*ret = &fakes.adapter[digest->bytes[0]];
	(*ret)->refs++;
	return CACHE_OK;
}

struct cache_adapter *cache_put(struct cache *cache, struct cache_adapter *adapter)
{
	(void)cache;
	assert(adapter->refs);
	adapter->refs--;
	return NULL;
}

void cache_begin_turn(struct cache *cache)
{
	(void)cache;
}

int cache_hold(struct cache *cache, struct cache_adapter *adapter, struct diag *diag)
{
	(void)cache;
	adapter->asked++;
	adapter->holds += adapter->result == CACHE_OK;
	return adapter->result ? diag_set(diag, adapter->result, "the reason") : CACHE_OK;
}

int cache_want(struct cache *cache, struct cache_adapter *adapter, struct diag *diag)
{
	(void)cache;
	adapter->asked++;
	return adapter->result ? diag_set(diag, adapter->result, "the reason") : CACHE_OK;
}

void cache_unhold(struct cache *cache, struct cache_adapter *adapter)
{
	(void)cache;
	assert(adapter->holds);
	adapter->holds--;
}

void cache_note_tokens(struct cache_adapter *adapter, uint64_t n)
{
	(void)adapter;
	(void)n;
}

const struct step_lora *cache_lora(const struct cache_adapter *adapter)
{
	return (const struct step_lora *)(const void *)adapter;
}

bool cache_shrink(struct cache *cache, size_t bytes, uint64_t idle_ns)
{
	(void)cache;
	(void)bytes;
	(void)idle_ns;
	if (!fakes.cache_blocks)
		return false;
	pool_release(pool, POOL_ADAPTERS, of_cache[--fakes.cache_blocks]);
	return true;
}

uint64_t cache_idle_ns(struct cache *cache, uint64_t now_ns)
{
	(void)cache;
	(void)now_ns;
	return fakes.cache_blocks;
}

size_t cache_spare_bytes(struct cache *cache)
{
	(void)cache;
	return (size_t)fakes.cache_blocks * POOL_PAGE;
}

void cache_read_stats(struct cache *cache, struct cache_stats *ret)
{
	(void)cache;
	*ret = (struct cache_stats){ .loading = fakes.loading };
}
