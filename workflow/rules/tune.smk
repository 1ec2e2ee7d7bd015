# The first stage: from the candidates of each arm to its choice, results/<preset>/tuned.csv.


def trained(wildcards):
    """The converted set that a run trains on. Not for its time: a set converted anew is the same set."""
    return ancient(expand(f"{READY}/{{set}}/{{array}}", set=wildcards.dataset, array=datasets.ARRAYS))


def threads(wildcards):
    """CPU threads of a training job. On GPUs of this machine its share of the cores, so that no more run than fit."""
    places = len(GPUS) * GRID.gpu_slots if DEVICE == "cuda" and workflow.local_exec else 0
    return max(GRID.threads, machine.cores() // places) if places else GRID.threads


def short(wildcards):
    """The group of a run that takes minutes: on a cluster such share a job, one after the other.

    All of a group must wait or run when the checkpoint is done: Snakemake 9.27 forms groups anew then, and mixes up what
    runs with what waits. So a run of a fixed rate, which does not wait for it, is a job of its own.
    """
    run = planned(wildcards)
    early = not run.candidate and run.rate == "fixed" and not GRID.tuned
    if workflow.local_exec or early or run.seconds(DEVICE) > 300:
        return None
    return "short-candidates" if run.candidate else "short-runs"


# On the machine that submits: they are light, and where nodes have no network it has.
localrules:
    data,
    tune,


# In each job of a cluster, not in all of them.
resource_scopes:
    turn="local",


rule data:
    """One data set: its official files, downloaded if absent, checked by md5, and converted for training once."""
    output:
        multiext(f"{READY}/{{dataset}}/", "images.npy", "labels.npy", "seal.json"),
    log:
        f"{READY}/{{dataset}}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=3000,
        runtime=60,
    shell:
        'python -m rankcollapse data {wildcards.dataset} --data-dir "$DATA_DIR" --ready {READY} $NO_DOWNLOAD'
        " 2>&1 | tee {log:q} >&2"


rule candidate:
    """One candidate of an arm, with a tuning seed."""
    input:
        trained,
    output:
        # It seals the files beside it, .run.json is its copy. A job that finds that one whole trains nothing.
        f"{RESULTS}/tuning/{plan.CANDIDATE}/run.json",
    log:
        f"{RESULTS}/logs/tuning/{plan.CANDIDATE}.log",
    group:
        short
    conda:
        "../../envs/train.yaml"
    threads: threads
    resources:
        gpu=int(DEVICE == "cuda"),
        turn=1,
        mem_mb=lambda wildcards: planned(wildcards).study.cost.mem_mb,
        # Wall time to ask of a cluster, minutes: three times the estimate.
        runtime=lambda wildcards: 10 + round(planned(wildcards).seconds(DEVICE) / 20),
    params:
        run=lambda wildcards: planned(wildcards).name,
        folder=lambda wildcards, output: os.path.dirname(output[0]),
        identity=identity,
    shell:
        "python -m rankcollapse train {PLAN} --run {params.run} --out {params.folder} --threads {GRID.threads} $FRESH"
        " 2>&1 | tee {log:q} >&2"


checkpoint tune:
    """All candidates and choices of this preset as one table. After it, it is seen anew which runs are to be trained."""
    input:
        lambda wildcards: wanted(CANDIDATES, "candidates.csv"),
    output:
        f"{RESULTS}/candidates.csv",
        f"{RESULTS}/tuned.csv",
    log:
        f"{RESULTS}/logs/tune.log",
    conda:
        "../../envs/render.yaml"
    params:
        planned=[run.identity for run in CANDIDATES.values()],
    shell:
        "python -m rankcollapse tune {RESULTS} $KEEP 2>&1 | tee {log:q} >&2"
