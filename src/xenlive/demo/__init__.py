"""The main job, measured: a Xenstore stub domain under load, updated A to B to C.

`run.py` tells the story in order; everything it asserts comes from somewhere else:

    tree.py      what the store must hold: the plan that nodes and permissions are held against
    load.py      a process of its own: clients, watchers and the checking of every answer
    world.py     what can be updated and looked at; `hosted.py` is the real one, of built images
    verdict.py   evidence in, named checks out: pure
    story.py     what people see; `report.py` what programs see

**Invariants.** The load never takes the server's word: it compares with the plan. The verdict
never takes the update's word: it compares what was read from the domain's memory before and after.
"""
