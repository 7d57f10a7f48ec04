"""The file tree of a host: nodes that are computed on demand, and open files.

Identities
    There is no object per node. A *kind* describes all nodes of one sort, such as the directories of all queues. A
    *key* identifies one of these directories, and an *entry* number an attribute or link in it; 0 is the directory
    itself. Packed into one number, the three are a node, and also the inode number. Accessing a node allocates nothing,
    and 65,536 queues cost as much as four.

    Keys of cards and queues consist of their numbers and a life number, which changes when they come back. Keys of
    nodes created at run time are serial numbers, which are never reused. Fixed directories that come and go with a
    module come back as the same nodes.

    The *subject* of a directory is the object that its attributes show and change. It is looked up by the key at each
    request. Without a subject, the directory does not exist.

Lifetimes
    A *lasting* node exists as long as the directory that contains it: an attribute that every subject has, a
    subdirectory without conditions.

    A *permanent* node always exists: it is lasting, and so is everything above it.

    A node *varies* if its stat can become wrong: a directory whose link count follows its subdirectories, or one that
    can go away; and any node with changed permissions, because a node that comes back has its original ones. The stat
    of a file that goes away is allowed to remain.

    Open files do not survive their node, even if it comes back: code that removes a node calls `Tree.deactivate` before
    a node of the same name can appear.

Uevents
    No name appears or disappears without a uevent in the journal. Linux works the same way: kobjects announce
    themselves, and the links and attributes of a driver come with `bind` and go with `unbind`. So the number of uevents
    is the version of all names. As long as it does not change, everything known about a node is still true. Uevents
    without such a change do no harm; a change without a uevent would (`tests/model/test_names_and_uevents.py`). The
    exceptions are not part of sysfs: `/ctl/fds`, the files on their way to processes, and `/guests` with everything
    below it. `Nodes.changes` counts their changes.

Guests
    Guests have their own trees, which share the table of kinds with the tree of their host (`nodes`): the number of a
    tree is part of the identity of each of its nodes. When a guest ends, its kinds and nodes disappear.

The modules, from bottom to top: `openfile` and `entries` (contents of a directory), `faults` and `attribute_file`
(reading and writing attributes), `members` (which directories of a kind exist), `kind`, `populations` and `directory`
(the kinds), `nodes` (what trees share), `tree` (everything together, and the requests of a file system).
"""
