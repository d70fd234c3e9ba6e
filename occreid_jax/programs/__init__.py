"""Training steps and embedding compiled for accelerators that are not there, and what their compiler says of them.

* `topologies`: the chips of a named topology as the project's `Devices`,
* `compiled`: one stage's step, or embedding, compiled from shapes alone,
* `hlo`: the text of an optimised program as instructions,
* `figures`: what a program needs and is estimated to take, as one plain dictionary,
* `checks`: rules that every program must keep.

Nothing here runs on a device; every time is an estimate of the compiler or a count.
"""
