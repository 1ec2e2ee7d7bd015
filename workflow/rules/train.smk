# The grid: each run is a job of its own, and so is each candidate that tunes an arm.


rule data:
    """One data set: its official files, downloaded if absent, checked by md5, and converted for training once."""
    output:
        multiext("data/ready/{dataset}/", "images.npy", "labels.npy", "seal.json"),
    log:
        "data/ready/{dataset}.log",
    conda:
        "../../envs/train.yaml"
    resources:
        mem_mb=3000,
        runtime=60,
    shell:
        'python -m rankcollapse data {wildcards.dataset} --data-dir "$DATA_DIR" $NO_DOWNLOAD 2>&1 | tee {log:q} >&2'


rule train:
    """One run. It is trained again when its identity or its arm's choice changes, and for nothing else."""
    input:
        choices,
        # Not for its time: a set converted anew is the same set.
        data=ancient(multiext("data/ready/{dataset}/", "images.npy", "labels.npy")),
    output:
        # It seals the files beside it. Not deleted before a job: one that is whole is found, and nothing is trained.
        update(f"{RESULTS}/runs/{grid.NAME}/run.json"),
    log:
        f"{RESULTS}/logs/train/{grid.NAME}.log",
    group:
        shared_job
    conda:
        "../../envs/train.yaml"
    threads: GRID.threads
    resources:
        gpu=gpus_asked,
        mem_mb=lambda wildcards: planned(wildcards).study.cost.mem_mb,
        # Wall time to ask of a cluster, minutes: three times the estimate, for the device of its nodes.
        runtime=lambda wildcards: 10 + round(planned(wildcards).seconds(DEVICE) / 20),
    params:
        run=lambda wildcards: planned(wildcards).name,
        identity=lambda wildcards: planned(wildcards).identity,
        folder=lambda wildcards, output: os.path.dirname(output[0]),
    shell:
        f"python -m rankcollapse train {PLAN} --run {{params.run}} --identity {{params.identity}}"
        " --out {params.folder} --threads {threads} $FRESH 2>&1 | tee {log:q} >&2"


use rule train as candidate with:
    input:
        data=ancient(multiext("data/ready/{dataset}/", "images.npy", "labels.npy")),
    output:
        update(f"{RESULTS}/tuning/{grid.CANDIDATE}/run.json"),
    log:
        f"{RESULTS}/logs/tuning/{grid.CANDIDATE}.log",


checkpoint choose:
    """The rate of one arm: that of its best candidate, or what the given table says. Unchanged, it retrains nothing."""
    input:
        rivals,
        "workflow/scripts/choose.py",
    output:
        f"{RESULTS}/tuning/{grid.ARM}/choice.json",
    log:
        f"{RESULTS}/logs/tuning/{grid.ARM}/choice.log",
    conda:
        "../../envs/render.yaml"
    params:
        arm=grid.ARM,
    shell:
        f"python workflow/scripts/choose.py {RESULTS} {{params.arm}} 2>&1 | tee {{log:q}} >&2"


if not GRID.tuned:

    rule tuned:
        """All candidates and choices of this preset as one table, with which of them to look at again."""
        input:
            all_rivals,
            "workflow/scripts/choose.py",
        output:
            f"{RESULTS}/tuned.csv",
        log:
            f"{RESULTS}/logs/tuned.log",
        conda:
            "../../envs/render.yaml"
        shell:
            f"python workflow/scripts/choose.py {RESULTS} 2>&1 | tee {{log:q}} >&2"
