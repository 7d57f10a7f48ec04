/*
 * The yardstick of the benchmark: the least that a FUSE server in C does for a tree like that of an emulated host.
 *
 *     yardstick MANIFEST MOUNTPOINT      in the foreground, until it is unmounted
 *
 * The tree is fixed; each line of the manifest is a node, its directory before it:
 *
 *     D PATH | F MODE PATH<tab>TEXT | L PATH<tab>TARGET      with \n for a newline in a text
 *
 * Everything is answered from memory, and the kernel may remember all of it.
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FOREVER 3600.0

struct node {
	char *name, *text;
	size_t length;
	mode_t mode;
	size_t parent, next_hash;           /* numbers of nodes; node 0 is not used, node 1 is the root */
	size_t *children, count, room;
};

static struct node *nodes;
static size_t node_count = 2, node_room, *buckets, bucket_mask;

static size_t hash(size_t parent, const char *name)
{
	size_t value = 14695981039346656037u ^ parent;
	while (*name)
		value = (value ^ (unsigned char)*name++) * 1099511628211u;
	return value & bucket_mask;
}

static size_t find(size_t parent, const char *name)
{
	for (size_t i = buckets[hash(parent, name)]; i; i = nodes[i].next_hash)
		if (nodes[i].parent == parent && !strcmp(nodes[i].name, name))
			return i;
	return 0;
}

static size_t resolve(char *path)
{
	size_t at = 1;
	for (char *name = strtok(path, "/"); name && at; name = strtok(NULL, "/"))
		at = find(at, name);
	return at;
}

static void add(mode_t mode, char *path, char *text)
{
	char *slash = strrchr(path, '/');
	char *name = strdup(slash + 1);
	*slash = 0;
	size_t parent = resolve(path), number = node_count++;
	if (!parent || number >= node_room)
		abort();
	struct node *node = &nodes[number], *dir = &nodes[parent];
	*node = (struct node){.name = name, .text = text, .length = strlen(text), .mode = mode, .parent = parent};
	size_t bucket = hash(parent, name);
	node->next_hash = buckets[bucket];
	buckets[bucket] = number;
	if (dir->count == dir->room) {
		dir->room = dir->room ? 2 * dir->room : 8;
		dir->children = realloc(dir->children, dir->room * sizeof *dir->children);
	}
	dir->children[dir->count++] = number;
}

static void load(const char *manifest)
{
	FILE *file = fopen(manifest, "r");
	char *line = NULL;
	size_t size = 0, lines = 0;
	if (!file)
		exit(2);
	while (getline(&line, &size, file) > 0)
		lines++;
	rewind(file);
	node_room = lines + 2;
	nodes = calloc(node_room, sizeof *nodes);
	nodes[1] = (struct node){.name = "", .text = "", .mode = S_IFDIR | 0755, .parent = 1};
	for (bucket_mask = 1; bucket_mask < 2 * lines; bucket_mask <<= 1)
		;
	buckets = calloc(bucket_mask--, sizeof *buckets);
	for (ssize_t length; (length = getline(&line, &size, file)) > 0;) {
		line[length - 1] = 0;
		char *tab = strchr(line, '\t'), *text = "";
		if (tab) {
			*tab = 0;
			char *to = text = strdup(tab + 1);
			for (char *from = text; *from; from++)
				*to++ = from[0] == '\\' && from[1] == 'n' ? (from++, '\n') : *from;
			*to = 0;
		}
		if (line[0] == 'F')
			add(S_IFREG | strtol(line + 2, NULL, 8), strchr(line, '/'), text);
		else
			add(line[0] == 'D' ? S_IFDIR | 0755 : S_IFLNK | 0777, line + 2, text);
	}
	fclose(file);
	free(line);
}

static void fill(struct fuse_entry_param *entry, size_t number)
{
	const struct node *node = &nodes[number];
	memset(entry, 0, sizeof *entry);
	entry->ino = entry->attr.st_ino = number;
	entry->attr.st_mode = node->mode;
	entry->attr.st_nlink = 1;
	entry->attr.st_size = S_ISREG(node->mode) ? 4096 : (off_t)node->length;
	entry->attr_timeout = entry->entry_timeout = FOREVER;
}

static void do_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param entry;
	size_t number = find(parent, name);
	if (!number) {
		fuse_reply_err(request, ENOENT);
		return;
	}
	fill(&entry, number);
	fuse_reply_entry(request, &entry);
}

static void do_getattr(fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
	struct fuse_entry_param entry;
	(void)info;
	fill(&entry, number);
	fuse_reply_attr(request, &entry.attr, FOREVER);
}

static void do_readlink(fuse_req_t request, fuse_ino_t number)
{
	fuse_reply_readlink(request, nodes[number].text);
}

static void do_open(fuse_req_t request, fuse_ino_t number, struct fuse_file_info *info)
{
	(void)number;
	info->direct_io = 1;
	fuse_reply_open(request, info);
}

static void do_read(fuse_req_t request, fuse_ino_t number, size_t size, off_t offset, struct fuse_file_info *info)
{
	const struct node *node = &nodes[number];
	size_t left = (size_t)offset < node->length ? node->length - offset : 0;
	(void)info;
	fuse_reply_buf(request, node->text + (left ? offset : 0), left < size ? left : size);
}

static void do_write(fuse_req_t request, fuse_ino_t number, const char *data, size_t size, off_t offset,
		     struct fuse_file_info *info)
{
	(void)number, (void)data, (void)offset, (void)info;
	fuse_reply_write(request, size);
}

static void do_readdirplus(fuse_req_t request, fuse_ino_t number, size_t size, off_t offset,
			   struct fuse_file_info *info)
{
	char *buffer = malloc(size);
	size_t used = 0;
	(void)info;
	for (size_t at = offset; at < nodes[number].count + 2; at++) {
		struct fuse_entry_param entry;
		size_t child = at == 0 ? number : at == 1 ? nodes[number].parent : nodes[number].children[at - 2];
		fill(&entry, child);
		size_t length = fuse_add_direntry_plus(request, buffer + used, size - used,
						       at == 0 ? "." : at == 1 ? ".." : nodes[child].name, &entry,
						       at + 1);
		if (length > size - used)
			break;
		used += length;
	}
	fuse_reply_buf(request, buffer, used);
	free(buffer);
}

static void do_setattr(fuse_req_t request, fuse_ino_t number, struct stat *attributes, int which,
		       struct fuse_file_info *info)
{
	(void)attributes, (void)which;
	do_getattr(request, number, info);
}

static void do_init(void *data, struct fuse_conn_info *connection)
{
	(void)data;
	connection->want &= ~FUSE_CAP_READDIRPLUS_AUTO;     /* always, as the other servers do */
}

static const struct fuse_lowlevel_ops operations = {
	.init = do_init, .lookup = do_lookup, .getattr = do_getattr, .setattr = do_setattr, .readlink = do_readlink,
	.open = do_open, .read = do_read, .write = do_write, .readdirplus = do_readdirplus,
};

int main(int argc, char **argv)
{
	char *words[] = {argv[0], "-o", "fsname=yardstick,default_permissions"};
	struct fuse_args arguments = FUSE_ARGS_INIT(3, words);
	if (argc != 3)
		return 2;
	load(argv[1]);
	struct fuse_session *session = fuse_session_new(&arguments, &operations, sizeof operations, NULL);
	if (!session || fuse_session_mount(session, argv[2]))
		return 1;
	int status = fuse_session_loop(session);
	fuse_session_unmount(session);
	fuse_session_destroy(session);
	return status != 0;
}
