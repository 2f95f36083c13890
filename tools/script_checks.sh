# shellcheck shell=bash disable=SC2034
# What the eval_*.sh share, sourced by them: where things are, $RUN, checks that end with status 2 and one line.

name=$(basename "$0")
repository=$(cd "$(dirname "$0")/.." && pwd)
read -ra run <<<"${RUN:-python}"

# fail <words> ...
fail() {
    echo "$name: error: $*" >&2
    exit 2
}

# need_arguments <what they are> <argument> ...: each is there, and no flag
need_arguments() {
    local argument
    for argument in "${@:2}"; do
        if [ -z "$argument" ] || [ "${argument#-}" != "$argument" ]; then
            fail "$1"
        fi
    done
}

# need_folder <path> <way out>
need_folder() {
    [ -d "$1" ] || fail "no folder $1: $2"
}

# need_file <path> <way out>
need_file() {
    [ -f "$1" ] || fail "no file $1: $2"
}

# need_lines <number> <list> <name of the set> <command for other images>
need_lines() {
    local found
    found=$(grep -c . "$2" || true)
    [ "$found" -eq "$1" ] || fail "$2 names $found images, $3 has $1; for others call $4"
}

# need_classes <folder of class folders> <command for other images>: ImageNet's 1,000
need_classes() {
    local found
    found=$(find -L "$1" -mindepth 1 -maxdepth 1 -type d | wc -l)
    [ "$found" -eq 1000 ] || fail "$1 has $found classes, ImageNet-1k has 1000; for other images call $2"
}

# imagenet_split <ImageNet's folder> <train or val>: prints where it is, as torchvision or as Kaggle lays it out
imagenet_split() {
    local folder
    for folder in "$1/$2" "$1/ILSVRC/Data/CLS-LOC/$2" "$1/Data/CLS-LOC/$2"; do
        if [ -d "$folder" ]; then
            echo "$folder"
            return
        fi
    done
}

# segmentation <what the first argument is> <data set> <protocol> <the script's arguments> ...: the whole benchmark
segmentation() {
    local root=${4:-}
    need_arguments "the first argument is $1" "$root"
    need_folder "$root" "the head of this script says what it holds"
    exec "${run[@]}" "$repository/clip/eval_zero_shot_seg.py" --dataset "$2" --root "$root" --protocol "$3" "${@:5}"
}

# discovery <year of VOC> <images of its trainval> <archive> <the script's arguments> ...: the whole benchmark
discovery() {
    local voc=${4:-}
    local list=$voc/ImageSets/Main/trainval.txt
    need_arguments "the first argument is the folder VOC$1 with JPEGImages in it" "$voc"
    need_file "$list" "unpack $3 and give its VOCdevkit/VOC$1"
    need_lines "$2" "$list" "VOC $1 trainval" "dino/eval_object_discovery.py --voc-root $voc"
    exec "${run[@]}" "$repository/dino/eval_object_discovery.py" --voc-root "$voc" --voc-split trainval \
        --dataset-name "VOC${1#20} trainval" --method patch-score lost dino-seg tokencut --component peak largest all \
        "${@:5}"
}
