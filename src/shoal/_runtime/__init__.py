"""The runtime: the objects that a program holds on to.

- ``application``: ``Application``, the public methods; ``definition`` has what it was built of.
  ``inputs`` checks what a run is given and makes a ``RunRequest`` of it. ``launch`` plans the run,
  has a runtime execute it and awaits it.
- ``start``: what a root run starts from. ``answers``: which answer belongs to which question.
  ``reopening``: which completed step a run goes back to.
  ``root_run``: one execution of a root run, from claim to release. ``result``: ``RunResult``.
- ``runtime``: ``Runtime``, which runs share. ``binding`` makes its services, ``tasks`` has its task
  group, ``registry`` the root runs that it executes, ``draining`` the signal that it takes no more.
  ``seats``: so many root runs at once, and the line of those that wait.
  ``apps``: applications, as a runtime needs them.
- ``handle``: ``RunHandle``. ``open_run``: ``OpenRun``, a handle whose run ends with its block.
- ``watching`` samples the runs of a runtime a few times per second: ``sampling`` looks at the runs
  in flight, ``tally`` adds up what they do and makes reports, ``limit_use`` has the limits in use,
  ``carry_out`` carries out the commands of watchers in other processes, which ``steering`` sends;
  ``display`` is the port to displays of progress.
- ``recovery`` finds and resumes the runs of dead processes.
"""
