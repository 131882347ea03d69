/* SPDX-License-Identifier: MIT */
/* An intrusive doubly linked list: a head is a link that points at itself when empty. No allocation, O(1) unlink. */
#ifndef LORAD_BASE_LIST_H
#define LORAD_BASE_LIST_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

struct list {
	struct list *next, *prev;
};

#define LIST_INIT(head) { &(head), &(head) }
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))

static inline void list_init(struct list *head)
{
	head->next = head->prev = head;
}

static inline bool list_empty(const struct list *head)
{
	return head->next == head;
}

static inline bool list_linked(const struct list *link)
{
	return link->next && link->next != link;
}

static inline void list_insert_before(struct list *at, struct list *link)
{
	assert(!list_linked(link));
	link->prev = at->prev;
	link->next = at;
	at->prev->next = link;
	at->prev = link;
}

static inline void list_append(struct list *head, struct list *link)
{
	list_insert_before(head, link);
}

static inline void list_prepend(struct list *head, struct list *link)
{
	list_insert_before(head->next, link);
}

/* Takes a link off its list; one that is on none stays as it is. */
static inline void list_unlink(struct list *link)
{
	if (!list_linked(link))
		return;
	link->prev->next = link->next;
	link->next->prev = link->prev;
	link->next = link->prev = NULL;
}

#define list_first(head, type, member) (list_empty(head) ? NULL : container_of((head)->next, type, member))
#define list_last(head, type, member) (list_empty(head) ? NULL : container_of((head)->prev, type, member))

/* The entry itself may be unlinked inside the loop, no other. */
#define list_for_each(entry, head, member)                                                               \
	for (__typeof__(entry) next_##entry, it_##entry = container_of((head)->next, __typeof__(*entry), member); \
	     &(entry = it_##entry)->member != (head) &&                                                          \
	     (next_##entry = container_of(entry->member.next, __typeof__(*entry), member), 1);                   \
	     it_##entry = next_##entry)

#endif
