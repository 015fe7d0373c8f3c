"""A small hand-made folder of each data set, as a user has it."""

import json
import pickle

from conftest import picture


def write_lines(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(file, value):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def animated(file, count, milliseconds=500):
    file.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (picture(60, 40, i) for i in range(count))
    first.save(file, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def make_frames(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        picture(60, 40, i).save(folder / f"{i:05d}.jpg")


VLM_R1 = "Please provide the bounding box coordinate of the region this sentence describes: {}."  # in its files


def make_refcoco(root, name="refcoco", folder=""):
    """As VLM-R1 has it: the files of its zip in the root, or in `folder` there."""
    prefix = {"refcoco": "refcoco", "refcoco+": "refcocop", "refcocog": "refcocog"}[name]
    make_coco(root / "train2014")
    rows = [
        {
            "image": f"coco/train2014/COCO_train2014_{i % 3:012d}.jpg",
            "conversations": [
                {"from": "human", "value": f"<image>{VLM_R1.format(f'the {i} thing')}"},
                {"from": "gpt", "value": f"[{i}, 10, {i + 30}, 50]"},
            ],
        }
        for i in range(6)
    ]
    write_lines(root / folder / f"{prefix}_train.jsonl", rows)
    for split in ("val", "test") if name == "refcocog" else ("val", "testA", "testB"):
        asked = [
            {
                "image": f"train2014/COCO_train2014_{i:012d}.jpg",
                "problem": VLM_R1.format(f"the {i} thing"),
                "normal_caption": f"the {i} thing",
                "solution": [i, 10, i + 30, 50],
            }
            for i in range(3)
        ]
        write_json(root / folder / f"{prefix}_{split}.json", asked)


def make_coco(folder):
    folder.mkdir(parents=True)
    for i in range(3):
        picture(100, 80, i).save(folder / f"COCO_train2014_{i:012d}.jpg")


def make_refer(root, name="refcoco"):
    """REFER's folder, the original: boxes are x, y, width, height."""
    make_coco(root / "images/mscoco/images/train2014")
    refs = [
        {
            "ref_id": i,
            "ann_id": 10 + i,
            "image_id": i,
            "category_id": 1,
            "split": split,
            "file_name": f"COCO_train2014_{i:012d}_{10 + i}.jpg",
            "sent_ids": [2 * i, 2 * i + 1],
            "sentences": [
                {"sent_id": 2 * i + k, "sent": sent, "raw": sent.upper(), "tokens": sent.split()}
                for k, sent in enumerate((f"the {i} thing", f"thing {i}"))
            ],
        }
        for i, split in enumerate(("train", "val", "test" if name == "refcocog" else "testA"))
    ]
    instances = {
        "images": [{"id": i, "width": 100, "height": 80, "file_name": "x.jpg"} for i in range(3)],
        "annotations": [{"id": 10 + i, "image_id": i, "bbox": [i, 10, 30, 40], "category_id": 1} for i in range(3)],
    }
    write_json(root / name / "instances.json", instances)
    by = "umd" if name == "refcocog" else "unc"
    (root / name / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))


def make_qwen_vl(root, name="refcoco"):
    """Qwen-VL's evaluation: everything in the folder data."""
    make_coco(root / "data/coco2014/train2014")
    rows = [
        {
            "image": f"data/coco2014/train2014/COCO_train2014_{i:012d}.jpg",
            "sent": f"the {i} thing",
            "bbox": [i, 10.0, i + 30.0, 50.0],
            "height": 80,
            "width": 100,
        }
        for i in range(3)
    ]
    write_lines(root / f"data/{name}/{name}_val.jsonl", rows)


def make_screenspot_pro(root):
    rows = []
    for i in range(10):
        file = f"cad/{i}.png"
        (root / "images/cad").mkdir(parents=True, exist_ok=True)
        picture(200, 100, i).save(root / "images" / file)
        rows.append({"img_filename": file, "bbox": [20, 10, 60, 30], "img_size": [200, 100], "group": "CAD"})
        rows[-1] |= {"instruction": f"press {i}", "application": "autocad", "platform": "windows"}
        rows[-1] |= {"ui_type": ("text", "icon")[i % 2]}
    write_json(root / "annotations/autocad_windows.json", rows)


def make_screenspot_v2(root):
    for platform in ("desktop", "mobile", "web"):
        rows = []
        for i in range(4):
            file = f"{platform}_{i}.png"
            (root / "screenspotv2_image").mkdir(parents=True, exist_ok=True)
            picture(200, 100, i).save(root / "screenspotv2_image" / file)
            rows.append({"img_filename": file, "bbox": [20, 10, 40, 20], "instruction": f"press {i}"})
            rows[-1] |= {"data_type": ("text", "icon")[i % 2], "data_source": "windows"}
        write_json(root / f"screenspot_{platform}_v2.json", rows)


def make_textvqa(root):
    (root / "train_images").mkdir(parents=True)
    picture(80, 60).save(root / "train_images/0a1.jpg")
    answers = ["nine", "9", "nine", "the nine", "9", "9.", "ten", "nine", "9", "9"]
    for split in ("train", "val"):
        rows = [{"image_id": "0a1", "question": f"what number, {i}?", "answers": answers} for i in range(4)]
        write_json(root / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": rows})


def make_nextqa(root):
    root.mkdir(parents=True, exist_ok=True)
    head = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    lines = [
        '4010069381,300,60,40,"why did the boy, in red, run",1,0,CW,to play,to eat,to rest,to see,to go\n',
        "4010069382,300,60,40,what happens after?,4,1,TN,a,b,c,d,e\n",
        "4010069382,300,60,40,what happened before?,0,2,TP,a,b,c,d,e\n",
    ]
    for split in ("train", "val"):
        (root / f"{split}.csv").write_text(head + "".join(lines))
    make_frames(root / "videos/1103/4010069381", 20)
    write_json(root / "map_vid_vidorID.json", {"4010069381": "1103/4010069381"})
    animated(root / "videos/4010069382.gif", 5)


def make_vilp(root):
    rows = []
    for i in range(30):
        row = {"question": f"A ball is round. What shape is ball {i}?"}
        for k in (1, 2, 3):
            (root / "images").mkdir(parents=True, exist_ok=True)
            picture(60, 60, k).save(root / f"images/{i}-{k}.png")
            row |= {f"image{k}": f"images/{i}-{k}.png", f"answer{k}": ("circle", "square", "star")[k - 1]}
        rows.append(row)
    write_lines(root / "vilp.jsonl", rows)


def make_gsm8k(root):
    answer = "She has 3 + 4 = <<3+4=7>>7 nuts.\nThat is 7 * 1000 = $<<7*1000=7000>>7,000.\n#### 7,000"
    for split in ("train", "test"):
        write_lines(root / f"{split}.jsonl", [{"question": f"How many, {i}?", "answer": answer} for i in range(4)])


def make_jsonl(root):
    root.mkdir(parents=True, exist_ok=True)
    picture(60, 60).save(root / "a.png")
    rows = [
        {"image": "a.png", "prompt": "<image>\nWhat is it?", "answer": "a ring"},
        {"image": "a.png", "sent": "the ring", "bbox": [5, 5, 30, 40]},
        {"prompt": "17 + 25 =", "answer": "42"},
        {"video": "clip", "prompt": "<video>\nWhat happens?", "answer": "it turns"},
    ]
    make_frames(root / "clip", 4)
    for split in ("train", "val"):
        write_lines(root / f"{split}.jsonl", rows)


def make_llava(root):
    root.mkdir(parents=True, exist_ok=True)
    picture(60, 60).save(root / "a.png")
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "a ring"), ("human", "Its colour?"), ("gpt", "red")]
    pair = [("human", "<image><image>\nWhich?"), ("gpt", "neither")]
    rows = [
        {"id": i, "image": image, "conversations": [{"from": who, "value": said} for who, said in talk]}
        for i, (image, talk) in enumerate([("a.png", turns), (["a.png", "a.png"], pair)])
    ]
    for split in ("train", "val"):
        write_json(root / f"{split}.json", rows)


MAKERS = {
    "refcoco": make_refcoco,
    "refcoco+": lambda root: make_refcoco(root, "refcoco+"),
    "refcocog": lambda root: make_refcoco(root, "refcocog"),
    "screenspot-pro": make_screenspot_pro,
    "screenspot-v2": make_screenspot_v2,
    "textvqa": make_textvqa,
    "nextqa": make_nextqa,
    "vilp": make_vilp,
    "gsm8k": make_gsm8k,
    "jsonl": make_jsonl,
    "llava": make_llava,
}
