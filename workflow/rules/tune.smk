# The first stage: from the candidates of each arm to its choice, results/<preset>/tuned.csv.


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
        f'python -m rankcollapse data {{wildcards.dataset}} --data-dir "$DATA_DIR" --ready {READY} $NO_DOWNLOAD'
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
        f"python -m rankcollapse train {PLAN} --run {{params.run}} --out {{params.folder}} --threads $THREADS $FRESH"
        " 2>&1 | tee {log:q} >&2"


checkpoint tune:
    """All candidates and choices of this preset as one table. After it, it is seen anew which runs are to be trained."""
    input:
        lambda wildcards: wanted(CANDIDATES, "candidates.csv"),
        # All sets are there by then. Where one is in the making when the jobs are seen anew Snakemake 9.27 takes what
        # stands on it, and is ancient to a job, for done: it would end, in good order, with nothing trained.
        ancient(expand(f"{READY}/{{set}}/{{array}}", set=SETS, array=datasets.ARRAYS)),
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
        f"python -m rankcollapse tune {RESULTS} $KEEP 2>&1 | tee {{log:q}} >&2"
