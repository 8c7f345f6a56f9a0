"""Errors, plans and purposes of configs in Chinese. A sentence that is not here is shown as it is, and said to be so.

An error of a library, or of a command that the studio has started, may be any text; what people at the page meet, by an
upload, a form or a button, is here.
"""

from __future__ import annotations

import re

from thinktune.report import translations

PURPOSES = {
    "article": "完全按照原文的设置：小模型会变差（docs/recipes.md）",
    "article-part2": "原文第二部分的变体：小模型会变差（docs/recipes.md）",
    "llama-3.2-1b": "推荐用于 Llama-3.2-1B-Instruct，一块 16 GB 以上的 GPU",
    "llama-3.2-3b": "推荐用于 Llama-3.2-3B-Instruct，一块 24 至 80 GB 的 GPU",
    "quickstart": "几分钟内，在 CPU 上、无需下载，让真实的对话模型学会先思考再回答",
    "quickstart-grpo": "quickstart 的模型继续强化学习（GRPO）：让自己答对的回答更可能出现",
    "quickstart-rft": "quickstart 的模型从自己答对的回答学习（拒绝采样；docs/reinforce.md）",
    "qwen2.5-3b": "推荐用于 Qwen2.5-3B-Instruct，一块 24 至 80 GB 的 GPU",
    "qwen2.5-3b-16gb": "推荐用于 Qwen2.5-3B-Instruct，一块 16 GB 的 GPU：4 位基座权重，较短的数据行",
    "qwen3-1.7b": "推荐用于已会思考的 Qwen3-1.7B：从自己答对的回答学习，一块 16 GB 以上的 GPU",
    "qwen3-4b": "推荐用于已会思考的 Qwen3-4B：从自己答对的回答学习，一块 24 至 80 GB 的 GPU",
}
"""Of the shipped configs, which say it in English."""

_N = r"([\d,.]+)"
_PATTERNS = [
    (re.compile(pattern, re.DOTALL), chinese)
    for pattern, chinese in (
        # uploads: rows
        (r"(.+) is no file of rows", "{} 不是数据文件"),
        (r"rows are in (.+)", "数据文件为 {}"),
        (r"no usable rows: (.+)", "没有可用的行：{}"),
        (r"a row needs a prompt, a thought and an answer: (.+)", "每行需要问题、思考与答案：见 {}"),
        (r"a row needs a prompt, (.+): (docs/\S+)", "每行需要问题，以及 {}：见 {}"),
        (rf"{_N} (.+) \(rows? ([\d, …]+) of (.+)\)", "{0} 行{1}（{3} 第 {2} 行）"),
        (r"columns not used: (.+)", "未使用的列：{}"),
        (r"(.+): unknown row format; keys seen: (.+)", "{}：无法识别的行格式；出现的键：{}"),
        (
            r"known formats: (.+); or set data\.format to a module:function of yours",
            "已知格式：{}；或将 data.format 设为您自己的 module:function",
        ),
        (r"(\S+) \(needs ([\w, ]+)\)", "{}（需要 {}）"),
        (r"(.+): has no rows", "{}：没有数据行"),
        (r"(.+): is empty", "{}：是空文件"),
        (r"(.+): cannot tell what kind of file this is", "{}：无法判断文件类型"),
        (r"known are (.+), also \.gz", "已知类型：{}，也可为 .gz"),
        (r"(.+): is (.+), not UTF-8 text", "{}：是 {}，不是 UTF-8 文本"),
        (r"unpack or convert it, or name it rightly", "请解压、转换，或改正文件名"),
        (r"(.+), line (\d+): is not JSON: (.+)", "{} 第 {} 行：不是 JSON：{}"),
        (r"(.+), line (\d+): is not CSV: (.+)", "{} 第 {} 行：不是 CSV：{}"),
        (r"(.+): is not Parquet: (.+)", "{}：不是 Parquet：{}"),
        (r"(.+): is not UTF-8 \(byte (\d+)\)", "{}：不是 UTF-8（第 {} 字节）"),
        (r"(.+): holds text that is not UTF-8", "{}：含有非 UTF-8 文本"),
        (r"save the file as UTF-8", "请将文件另存为 UTF-8"),
        (r"(.+): must be a list of rows, or have one under 'data'", "{}：须为行的列表，或在 “data” 下包含它"),
        (r"(.+): is nested too deep", "{}：嵌套过深"),
        (r"(.+): cannot be read: (.+)", "{}：无法读取：{}"),
        (r"no file (.+)", "没有文件 {}"),
        (
            r"no file or folder (.+) here, and no data set of that name on the hub \(or it is private\)",
            "本机没有文件或文件夹 {}，hub 上也没有此数据集（或为私有）",
        ),
        (r"check the spelling; for a private or gated one log in: (.+)", "请检查拼写；私有数据集须先登录：{}"),
        (r"no data set (.+): (.+)", "没有数据集 {}：{}"),
        (r"check the spelling, or log in: (.+)", "请检查拼写，或登录：{}"),
        (
            r"(.+), row (\d+): ([\d,]+) tokens, but data\.max_length is ([\d,]+)",
            "{} 第 {} 行：{} 个 token，而 data.max_length 为 {}",
        ),
        (
            r"raise data\.max_length, or set data\.overlong: drop",
            "请增大 data.max_length，或设 data.overlong: drop",
        ),
        (
            r"data\.eval_fraction (\S+) leaves nothing to train on of (\d+) examples",
            "data.eval_fraction {} 使 {} 条样例中没有可训练的",
        ),
        (r"data\.source has weights, but no data\.sample to split by them", "data.source 有权重，却没有 data.sample"),
        (r"set data\.sample", "请设置 data.sample"),
        # uploads: question files
        (r"line (\d+): (.+)", "第 {} 行：{}"),
        (r"(.+) has more than (.+) MiB", "{} 超过 {} MiB"),
        (r"(.+) has more than (.+) items", "{} 超过 {} 条"),
        (r"use thinktune infer", "请使用 thinktune infer"),
        (r"(.+): has no items", "{}：没有题目"),
        (r"a line is (\{.+)", "每行形如 {}"),
        (r"(.+): is (.+), not JSON lines in UTF-8", "{}：是 {}，不是 UTF-8 的 JSON Lines"),
        (r"unpack or convert it first", "请先解压或转换"),
        (r"(.+): is one JSON list, not JSON lines", "{}：是一个 JSON 列表，不是 JSON Lines"),
        (r"put each item on a line of its own: (.+)", "请将每条放在单独一行：{}"),
        (r"is not UTF-8", "不是 UTF-8"),
        (r"is not JSON: (.+) at column (\d+)", "不是 JSON：{}（第 {} 列）"),
        (r"holds a number with more digits than can be read", "含有位数过多的数字"),
        (r"is nested too deep", "嵌套过深"),
        (r"is not an object with id, type and prompt", "不是含 id、type 与 prompt 的对象"),
        (r"id (.+) is used in line (\d+) already", "id {} 已在第 {} 行使用"),
        (r"has no type; known are (.+)", "没有 type；可用：{}"),
        (r"has no (\w+)", "没有 {}"),
        (r"unknown type (.+); did you mean (.+)\? known are (.+)", "未知的 type {}；是否为 {}？可用：{}"),
        (r"unknown type (.+); known are (.+)", "未知的 type {}；可用：{}"),
        (
            r"unknown field (.+); did you mean (.+), which belongs into sampling\?",
            "未知字段 {}；是否为 {}？它属于 sampling",
        ),
        (r"unknown field (.+); did you mean (.+)\?", "未知字段 {}；是否为 {}？"),
        (r"(\S+) belongs into sampling", "{} 属于 sampling"),
        (r"has both prompt and messages: give one of them", "同时有 prompt 与 messages：只给其一"),
        (r"(.+) must be a text or a whole number, not (.+)", "{} 须为文本或整数，而非 {}"),
        (r"(.+) must be a text, not (.+)", "{} 须为文本，而非 {}"),
        (r"(.+) is blank", "{} 为空白"),
        (r"(.+) may hold text only", "{} 只能含文本"),
        (r"(.+) is not valid Unicode", "{} 不是有效的 Unicode"),
        (r"the content of message (\d+)", "第 {} 条消息的内容"),
        (r"messages must be a list of \{role, content\}", "messages 须为 {{role, content}} 的列表"),
        (r"messages must end with a turn of the user", "messages 须以用户发言结束"),
        (r"message (\d+) has the role (.+); known are (.+)", "第 {} 条消息的角色为 {}；可用：{}"),
        (r"message (\d+) is not \{role, content\}", "第 {} 条消息不是 {{role, content}}"),
        (r"sampling must be an object, not (.+)", "sampling 须为对象，而非 {}"),
        (r"sampling: (.+)", "sampling：{}"),
        # names and buttons
        (r"\s*→ (.+)", "→ {}"),
        (r"(.+) cannot be the name of a (?:run|study)", "{} 不能用作名称"),
        (r"(.+) cannot be the name of rows", "{} 不能用作名称"),
        (r"letters, digits, dots, dashes, underscores", "可用字母、数字、点、连字符与下划线"),
        (r"letters, digits, spaces, dots, dashes", "可用字母、数字、空格、点与连字符"),
        (r"letters, digits, dashes, underscores", "可用字母、数字、连字符与下划线"),
        (r"there is a run (.+) already", "已有名为 {} 的运行"),
        (r"choose another name, or resume it", "请换一个名称，或继续训练它"),
        (r"there (?:is a study|are rows) (.+) already", "已有名称 {}"),
        (r"choose another name", "请换一个名称"),
        (r"there is no run (.+)", "没有运行 {}"),
        (r"there is no config (.+)", "没有配置 {}"),
        (r"there is no such study", "没有此评测"),
        (r"(.+) is (trained|training|unfinished|sweep)", "{} 的状态为：{}"),
        (r"only a trained run can be scored", "只有训练完成的运行才能评分"),
        (r"only an unfinished training can be resumed", "只有未完成的训练才能继续"),
        (r"the config of (.+) names no problems to be scored on", "{} 的配置没有指定评分题目"),
        (r"thinktune eval does it", "可用 thinktune eval 评分"),
        (r"the studio has no model (.+)", "Studio 没有模型 {}"),
        (r"(.+) is none of the studio's models", "{} 不是 Studio 的模型"),
        (r"there are (.+)", "可用：{}"),
        (r"the studio has been closed", "Studio 已关闭"),
        (r"a comparison needs two models or more", "比较至少需要两个模型"),
        (
            r"these runs have no scored answers of two models to the same problems",
            "这些运行没有两个模型对相同题目的已评分回答",
        ),
        (r"score them first", "请先评分"),
        (r"no question has an answer of every model", "没有一个问题得到所有模型的回答"),
        # the training form
        (
            r"(.+): (.+) is not of a hub, and the studio was not started with it",
            "{}：{} 不在 hub 上，启动 Studio 时也未指定",
        ),
        (r"(.+) is not of a hub, and the studio was not started with it", "{} 不在 hub 上，启动 Studio 时也未指定"),
        (r"start such a training on the command line", "请在命令行启动这样的训练"),
        (
            r"start such a training on the command line, or name it when the studio is started \((.+)\)",
            "请在命令行启动这样的训练，或在启动 Studio 时指定（{}）",
        ),
        (r"(\S+) cannot be set from the page", "{} 不能在页面上设置"),
        (r"(.+): (.+) is code of your own", "{}：{} 是您自己的代码"),
        (r"output is the name of the run", "output 即运行名称"),
        (r"take it out of the further settings", "请从其他设置中删去"),
        (r"(.+): commas make several values of it", "{}：逗号会把它分成多个值"),
        (r"put the value in quotes", "请给值加引号"),
        (r"override (.+) is not key=value", "设置 {} 不是 key=value"),
        (r"override (.+): (\S+) is not a section", "设置 {}：{} 不是配置节"),
        (r"(.+) is not key=value", "{} 不是 key=value"),
        (r"for example (\S+)", "例如 {}"),
        (r"there is nothing to sweep over", "没有要扫描的取值"),
        (r"give a key several values: (.+)", "请给某个键多个值：{}"),
        (r"(.+): a value is missing between the commas", "{}：逗号之间缺少值"),
        (r"(\S+) is given twice", "{} 出现了两次"),
        (r"these are (.+) trainings; (\d+) is the most", "共 {} 次训练；最多 {} 次"),
        (r"output cannot be swept over", "output 不能扫描"),
        (r"(\S+): unknown key; did you mean (\S+)\?", "{}：未知的键；是否为 {}？"),
        (r"(\S+): unknown key; known are (.+)", "{}：未知的键；可用：{}"),
        (r"thinktune config --schema lists every key", "thinktune config --schema 列出所有键"),
        (r"(\S+\.yaml): (.+)", "{}：{}"),
        (r"(\S+): (Input should be .+)", "{}：{}"),
        (r"Input should be greater than or equal to (\S+)", "应大于或等于 {}"),
        (r"Input should be greater than (\S+)", "应大于 {}"),
        (r"Input should be less than or equal to (\S+)", "应小于或等于 {}"),
        (r"Input should be less than (\S+)", "应小于 {}"),
        (r"Input should be a valid integer(?:, .+)?", "应为整数"),
        (r"Input should be a valid number(?:, .+)?", "应为数字"),
        (r"Input should be a valid string", "应为文本"),
        (r"Input should be (.+)", "应为 {}"),
        # models, hubs and what a machine lacks
        (r"there is no (/.+|\.+/.+)", "没有 {}"),
        (r"(.+) is not a model reference", "{} 不是模型名称"),
        (r"(.+): (.+), and there is no whole copy in the cache", "{}：{}，缓存中也没有完整副本"),
        (r"(.+), after (\d+) attempts", "{}，已尝试 {} 次"),
        (r"the hub cannot be reached \((.+)\)", "无法连接 hub（{}）"),
        (r"the hub answers (\d+)", "hub 返回 {}"),
        (
            r"check the network \(thinktune doctor\), or download it elsewhere and name its folder",
            "请检查网络（thinktune doctor），或在别处下载并指定其文件夹",
        ),
        (r"the tokenizer of (.+) has no chat template", "{} 的分词器没有对话模板"),
        # what a run has
        (r"(\d+): row (\d+)", "{}：第 {} 行"),
        (r"reward (\S+) \((.+)\)", "奖励 {}（{}）"),
        (r"reward (\S+)", "奖励 {}"),
        (r"tokens", "token 数"),
        # plans: planner.plan, planner.learning_rate
        (r"(\d+) packs? at once x (\d+) on each of (\d+), (.+)", "{2} 个 GPU 上每次各 {0} 个包 × {1}，{3}"),
        (r"(\d+) packs? at once x (\d+), (.+)", "每次 {} 个包 × {}，{}"),
        (r"(.+), from CUDA graphs", "{}，使用 CUDA graph"),
        (r"(.+), MLP in (\d+) chunks(.*)", "{}，MLP 分 {} 块{}"),
        (r"(.+), checkpoints in main memory", "{}，检查点放在主内存"),
        (r"recomputing nothing", "不重算"),
        (
            r"recomputing (\d+) of (\d+) MLPs and (\d+) of (\d+) layers",
            "重算 {1} 个 MLP 中的 {0} 个与 {3} 层中的 {2} 层",
        ),
        (r"recomputing (\d+) of (\d+) MLPs", "重算 {1} 个 MLP 中的 {0} 个"),
        (r"recomputing (\d+) of (\d+) layers", "重算 {1} 层中的 {0} 层"),
        (
            r"what (.+) takes is not known, and counted as attention: memory and speed may differ",
            "{} 的开销未知，按注意力估算：显存与速度可能不同",
        ),
        (r"(.+) x (\(\S+\)\S+ of .+|\(\S+\)\S+|sqrt\(.+)", "{} × {}"),
        (r"(.+) x (\S+ for its alpha)", "{} × {}"),
        (r"(\S+) x (\d+) for an adapter", "{} × {}（适配器）"),
        (r"(\S+) for its alpha", "{}（alpha）"),
        (r"(\(\S+\)\S+) of (\w+)", "{}（{}）"),
        (r"(\(\S+\)\S+) of (\w+), as none is known of (\w+)", "{}（{}，因 {} 的未知）"),
        (r"(sqrt\(\S+\)) for (\S+) (pairs|completions) a step(.*)", "{}（每步 {} 个{}{}）"),
        (r"pairs", "配对"),
        (r"completions", "回答"),
        (r" or more: the data is not read", "或更多：数据未读取"),
    )
]  # fmt: skip
_REMEDY = re.compile(r" \(")
_ORIGINAL = "（原文）"


def in_chinese(text: str) -> str | None:
    """Return a sentence of an error or a plan in Chinese; None: it is not known here.

    >>> in_chinese("no usable rows: 2 no answer (rows 1, 2 of rows.jsonl)")
    '没有可用的行：2 行没有答案（rows.jsonl 第 1, 2 行）'
    """
    if found := translations.in_chinese(text):
        return found
    for separator in ("; ", "\n"):
        if separator in text and all(parts := [in_chinese(part) for part in text.split(separator)]):
            return ("；" if separator == "; " else "\n").join(filter(None, parts))
    for pattern, chinese in _PATTERNS:
        if match := pattern.fullmatch(text):
            return chinese.format(*(in_chinese(part or "") or part or "" for part in match.groups()))
    return None


def told(text: str, hint: str = "") -> str:
    """Return an error for a Chinese page: in Chinese, or where that is not known, as it is, said to be so.

    Args:
        hint: its remedy; of a text that was kept, it may stand in brackets at the end.
    """
    if not hint:
        for at in (match.start() for match in _REMEDY.finditer(text) if text.endswith(")")):
            fault, remedy = in_chinese(text[:at]), in_chinese(text[at + 2 : -1])
            if fault and remedy:
                return f"{fault}（{remedy}）"
    fault = in_chinese(text)
    if fault is None:
        return f"{_ORIGINAL}{text}" + (f"（{in_chinese(hint) or hint}）" if hint else "")
    return fault + (f"（{in_chinese(hint) or hint}）" if hint else "")
