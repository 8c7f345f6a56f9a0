"""Every text of the studio, in English and Chinese.

`label` gives the fixed texts of the page, which the browser translates into its own language; `say` those written
during its use, in the language that the browser asks for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr

from thinktune.config.shipped import purpose_of
from thinktune.errors import ThinktuneError
from thinktune.report.translations import in_chinese
from thinktune.studio import chinese

TEXTS: dict[str, tuple[str, str]] = {
    "about": (
        "Chat with models side by side, rate them blind, answer files, watch and start trainings.",
        "并排对话、盲评、批量回答、观察并启动训练。",
    ),
    "loading": ("loading {name} …", "正在加载 {name} …"),
    "unheard": (
        "The studio does not answer. What you see is what it said last; asking again …",
        "工作台没有回应。这里显示的是它最后的内容，正在重试 …",
    ),
    # chat
    "chat": ("Chat", "对话"),
    "model": ("Model", "模型"),
    "second_model": ("Second model", "第二个模型"),
    "none": ("none", "无"),
    "question": ("Question", "问题"),
    "question_hint": (
        "Ask something … Enter sends, Shift+Enter begins a new line",
        "提问 … 回车发送，Shift+回车换行",
    ),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "again": ("Answer again", "重新回答"),
    "edit": ("Edit the question", "修改问题"),
    "new": ("New conversation", "新对话"),
    "conversations": ("Conversations", "对话列表"),
    "delete_conversation": ("Delete this conversation", "删除此对话"),
    "ask_delete": ("Delete this conversation for good?", "永久删除此对话？"),
    "ask_empty": ("Empty this side of the conversation?", "清空这一侧的对话？"),
    "welcome": ("Ask something", "提个问题吧"),
    "welcome_tuned": (
        "Your newest run answers here. Pick an example below, or write a question of your own.",
        "最新的运行在这里回答。请选择下方的示例，或写下您的问题。",
    ),
    "welcome_base": (
        "Its base model answers here, so that you see the change.",
        "其基座模型在这里回答，便于对比训练前后的变化。",
    ),
    "welcome_alone": (
        "Pick an example below, or write a question of your own.",
        "请选择下方的示例，或写下您的问题。",
    ),
    "queued": ("{count} waiting", "{count} 个问题等待中"),
    "speed": ("{tokens} tokens · {speed:.0f} tokens/s", "{tokens} 个 token · {speed:.0f} token/秒"),
    "thought_for": ("thought for {seconds:.1f} s", "思考 {seconds:.1f} 秒"),
    "well_formed": ("well-formed", "格式完整"),
    "is_right": ("right", "正确"),
    "is_wrong": ("wrong", "错误"),
    "export": ("Export", "导出"),
    "sampling": ("Sampling", "采样设置"),
    "profile": ("Profile", "预设"),
    "temperature": ("Temperature (0: greedy)", "温度（0 为贪心）"),
    "top_p": ("top_p", "top_p"),
    "top_k": ("top_k (0: all)", "top_k（0 为全部）"),
    "repetition_penalty": ("Repetition penalty", "重复惩罚"),
    "max_tokens": ("Most tokens of an answer", "回答的最大 token 数"),
    "think_budget": ("Think budget in tokens (0: as it comes)", "思考预算 token 数（0 为不限）"),
    "seed": ("Seed", "随机种子"),
    "tell_format": ("Tell untuned models the format", "向未微调的模型说明格式"),
    "thinking": ("Thinking … {tokens} tokens", "思考中 … {tokens} 个 token"),
    "thought": ("Thought: {tokens} tokens, {seconds:.1f} s", "思考：{tokens} 个 token，{seconds:.1f} 秒"),
    "waiting": ("{model}: {place} in the queue", "{model}：排队第 {place} 位"),
    "answering": ("{model}: {tokens} tokens, {seconds:.1f} s", "{model}：{tokens} 个 token，{seconds:.1f} 秒"),
    "answered": (
        "{model}: {tokens} tokens, {seconds:.1f} s, done",
        "{model}：{tokens} 个 token，{seconds:.1f} 秒，完成",
    ),
    "halted": (
        "{model}: {tokens} tokens, {seconds:.1f} s, stopped",
        "{model}：{tokens} 个 token，{seconds:.1f} 秒，已停止",
    ),
    "broken": ("{model}: done, without an answer", "{model}：完成，没有回答"),
    "no_answer": ("no answer: the model has written nothing", "没有回答：模型什么也没写"),
    "cut": ("stopped: the text above is cut off", "已停止：以上内容不完整"),
    "no_question": ("write a question first", "请先输入问题"),
    "malformed": ("not well-formed: {problem}", "格式不完整：{problem}"),
    # rate
    "rate": ("Rate", "评分"),
    "rater": ("Your name", "您的名字"),
    "study": ("Study", "评测"),
    "new_study": ("New study", "新建评测"),
    "study_name": ("Name of the study", "评测名称"),
    "study_models": ("Models (two or more)", "模型（两个以上）"),
    "questions": ("Questions (JSON lines, as for a batch)", "问题文件（JSON Lines，与批量相同）"),
    "no_file": ("without a file: the built-in questions", "不选文件则使用内置问题"),
    "from_scores": (
        "Take the scored answers of these runs instead of asking models",
        "直接使用这些运行已评分的回答，不再生成",
    ),
    "make_study": ("Prepare the answers", "准备回答"),
    "preparing": ("{model}: {done} of {total} answers", "{model}：{total} 条中已完成 {done} 条"),
    "prepared": ("{count} questions are ready to be rated", "{count} 个问题可以评分"),
    "show_thinking": ("Show thinking", "显示思考过程"),
    "begin": ("Begin or go on", "开始或继续"),
    "left": ("Left is better (1)", "左边更好（1）"),
    "right": ("Right is better (2)", "右边更好（2）"),
    "both_good": ("Both good (3)", "都好（3）"),
    "both_bad": ("Both bad (4)", "都差（4）"),
    "skip": ("Skip for now", "暂时跳过"),
    "show_reference": ("Show reference", "显示参考答案"),
    "reference_is": ("Reference: {reference}", "参考答案：{reference}"),
    "no_reference": ("none", "无"),
    "delete_study": ("Delete this study", "删除此评测"),
    "ask_delete_study": (
        "Take this study and its ratings off the list?",
        "从列表中移除此评测及其评分？",
    ),
    "explain_study": (
        "**No study yet.** A study is a set of questions with the answers of two or more models. You see two answers "
        "without names and say which is better; the results say which model people prefer, and how surely. Make one "
        "below under *New study*.",
        "**还没有评测。** 评测是一组问题以及两个以上模型的回答。您会看到两个匿名回答并选出更好的一个；"
        "结果会显示人们更喜欢哪个模型及其置信度。"
        "请在下方*新建评测*。",
    ),
    "undo": ("Undo my last rating", "撤销上一条评分"),
    "nothing_to_undo": ("{rater} has rated nothing here yet", "{rater} 在此还没有评分"),
    "old_display": (
        "of them made while texts were not shown as they were written, and worth less: {count}",
        "其中 {count} 条是在文本显示有误时作出的，参考价值较低",
    ),
    "comment": ("Comment (optional)", "备注（可选）"),
    "left_answer": ("Left", "左"),
    "right_answer": ("Right", "右"),
    "progress": ("{done} of {total} rated by {rater}", "{rater} 已评 {total} 条中的 {done} 条"),
    "all_rated": ("{rater} has rated everything. Thank you!", "{rater} 已全部评完，谢谢！"),
    "name_yourself": ("write your name and choose a study first", "请先填写名字并选择评测"),
    "results": ("Results", "结果"),
    "show_results": ("Show the results", "显示结果"),
    "no_ratings": ("nothing is rated yet", "还没有评分"),
    "win_rate": ("{model} is preferred to {other}", "{model} 优于 {other}"),
    "strength": ("strength of {model} (Bradley-Terry)", "{model} 的强度（Bradley-Terry）"),
    "raters_agree": ("agreement between raters (Krippendorff's alpha)", "评分者一致性（Krippendorff α）"),
    "scores_agree": ("agreement with the automatic score", "与自动评分的一致性"),
    "too_few": ("not enough ratings", "评分不足"),
    "ratings_file": ("Ratings as JSON lines", "评分（JSON Lines）"),
    "count_ratings": ("ratings: {count}, raters: {raters}", "{raters} 人共 {count} 条评分"),
    # batch
    "question_file": ("Question file", "问题文件"),
    "batch_file": ("Question file (JSON lines)", "问题文件（JSON Lines）"),
    "checked": (
        "{items} items: {types} · {golds} with a reference",
        "{items} 条：{types} · {golds} 条有参考答案",
    ),
    "faulty_lines": ("Lines that cannot be used: {count}", "无法使用的行：{count}"),
    "models": ("Models", "模型"),
    "run_batch": ("Answer the file", "开始回答"),
    "any_type": ("any", "任意"),
    "show_rows": ("Show", "显示"),
    "outcome_all": ("all", "全部"),
    "outcome_differ": ("only where they differ", "仅显示不同"),
    "outcome_right": ("right", "正确"),
    "outcome_wrong": ("wrong", "错误"),
    "outcome_unanswered": ("unanswered", "未回答"),
    "search": ("Search", "搜索"),
    "page": ("Page", "页"),
    "rows_found": ("rows: {count} · page {page} of {pages}", "{count} 行 · 第 {page} / {pages} 页"),
    "right_of": ("{right} of {known} right", "{known} 条中 {right} 条正确"),
    "answered_of": ("{done} of {total} answered", "已回答 {done} / {total}"),
    "rate_these": ("Rate these", "评分这些回答"),
    "save_table": ("Download this table", "下载此表"),
    "job": ("Answered files", "已提交的文件"),
    "job_state": ("{state} · {done} of {total} answers", "{state} · {total} 条中已完成 {done} 条"),
    "result_file": ("Result files", "结果文件"),
    "go_on": ("Go on", "继续"),
    "state_running": ("running", "运行中"),
    "state_done": ("done", "完成"),
    "state_stopped": ("stopped", "已停止"),
    "state_failed": ("failed: {error}", "失败：{error}"),
    "file_first": ("choose a file first", "请先选择文件"),
    "item_id": ("id", "编号"),
    "item_type": ("Type", "类型"),
    "prompt": ("prompt", "提问"),
    # runs
    "runs": ("Runs", "运行"),
    "choose_runs": ("Runs to look at", "要查看的运行"),
    "name": ("name", "名称"),
    "state": ("state", "状态"),
    "step": ("step", "步"),
    "loss": ("loss", "损失"),
    "accuracy": ("right", "正确率"),
    "format_rate": ("well-formed", "格式正确率"),
    "tokens_per_second": ("tokens/s", "token/秒"),
    "all_runs": ("All runs", "所有运行"),
    "which_run": ("Run", "运行"),
    "chat_with": ("Chat with it", "与它对话"),
    "score": ("Score", "评分"),
    "report": ("Report", "报告"),
    "report_file": ("Report (HTML)", "报告（HTML）"),
    "train_again": ("Train again with changes", "修改后重新训练"),
    "scores": ("### Scores", "### 得分"),
    "trained_with": ("### Trained with", "### 训练设置"),
    "took": ("took", "用时"),
    "memory": ("peak memory", "内存峰值"),
    "not_scored_yet": ("Not scored yet: press Score.", "尚未评分：请点击“评分”。"),
    "none_yet": ("None yet: samples come with the scores.", "暂无：评分后即有样例。"),
    "rate_accuracy": ("right", "正确率"),
    "rate_accuracy_lenient": ("right, format forgiven", "正确率（不计格式）"),
    "rate_format_rate": ("well-formed", "格式正确率"),
    "side_base": ("base model", "基座模型"),
    "side_tuned": ("this run", "此运行"),
    "fixed": ("wrong before, right now", "之前错，现在对"),
    "lost": ("right before, wrong now", "之前对，现在错"),
    "both_wrong": ("wrong", "仍错"),
    "both_right": ("right before and now", "前后皆对"),
    "files": ("Files", "文件"),
    "file": ("file", "文件"),
    "size": ("size", "大小"),
    "n_of_n": ("{done} of {total}", "{total} 中的 {done}"),
    "left_over": ("{time} left", "剩余 {time}"),
    "hours": ("{hours} h {minutes:02} min", "{hours} 小时 {minutes:02} 分"),
    "minutes": ("{minutes} min {seconds:02} s", "{minutes} 分 {seconds:02} 秒"),
    "seconds": ("{seconds} s", "{seconds} 秒"),
    "phase_starting": ("starting", "正在启动"),
    "phase_preparing": ("preparing model and data", "正在准备模型与数据"),
    "phase_training": ("training, step", "训练中，步"),
    "phase_asking": ("trained, answering its first questions", "训练完成，正在试答"),
    "phase_merging": ("merging", "正在合并"),
    "phase_verifying": ("verifying the merged model", "正在校验合并后的模型"),
    "phase_answering": ("answering", "正在回答"),
    "phase_scoring": ("scoring", "正在评分"),
    "phase_scoring_base": ("scoring the base model", "正在评测基座模型"),
    "phase_sweeping": ("sweep, training", "参数扫描中，训练"),
    "phase_swept": ("sweep done", "参数扫描完成"),
    "phase_done": ("trained and scored", "已训练并评分"),
    "phase_trained": ("trained, not scored", "已训练，未评分"),
    "phase_stopped": ("stopped", "已停止"),
    "phase_failed": ("failed", "失败"),
    "train": ("Train", "训练"),
    "start_scored": ("Train and score", "训练并评分"),
    "method": ("Method", "方法"),
    "method_sft": ("Examples (SFT)", "示例（SFT）"),
    "method_dpo": ("Preferences (DPO)", "偏好（DPO）"),
    "method_grpo": ("Rewards (GRPO)", "奖励（GRPO）"),
    "prompts": ("Problems a step", "每步题数"),
    "completions": ("Completions per problem", "每题回答数"),
    "completion_tokens": ("Most tokens of a completion", "回答的最大 token 数"),
    "rewards": ("Rewards and their weights", "奖励及权重"),
    "dpo_loss": ("Loss", "损失函数"),
    "sources_of_config": ("the config's own sources", "配置中的数据来源"),
    "sweep": (
        "Sweep (empty: one training): values to try in all combinations",
        "参数扫描（留空则为单次训练）：逐一尝试所有取值组合",
    ),
    "collect": ("Collect rows from a model's own answers", "从模型自己的回答收集数据"),
    "collect_about": (
        "Draws several answers to each problem and keeps those that are right, as rows to train on.",
        "对每道题抽取多个回答，保留正确的作为训练数据。",
    ),
    "problems_source": ("Problems with answers", "带答案的题目"),
    "problems_count": ("Problems (0: all)", "题数（0 为全部）"),
    "rows_name": ("Name of the rows", "数据名称"),
    "with_pairs": ("Also pairs of right and wrong answers, for DPO", "同时生成正误配对（用于 DPO）"),
    "collect_start": ("Collect", "开始收集"),
    "collect_running": ("collecting", "收集中"),
    "collect_done": ("done: the rows are among the data sources", "完成：已加入数据来源"),
    "collect_failed": ("failed", "失败"),
    "collect_stopped": ("stopped; Collect goes on", "已停止；再次点击可继续"),
    "upload_rows": (
        "Your rows: upload a file for a config that fits it, or name a source below",
        "您的数据：上传文件即生成合适的配置，或在下方填写来源",
    ),
    "reading_rows": (
        "The file is here. Reading and tokenising its rows, for a config that fits them …",
        "文件已收到，正在读取并分词，以生成合适的配置 …",
    ),
    "preview": ("Preview the data", "预览数据"),
    "plan_beside": ("## Plan", "## 计划"),
    "plan_memory": ("memory", "内存"),
    "plan_time": ("time", "用时"),
    "plan_speed": ("speed", "速度"),
    "plan_batches": ("batches", "批次"),
    "plan_not_fit": ("{memory}: does not fit", "{memory}：放不下"),
    "plan_gib": ("{peak:.1f} of {limit:.1f} GiB", "{limit:.1f} GiB 中的 {peak:.1f}"),
    "plan_minutes": ("about {minutes} min", "约 {minutes} 分"),
    "plan_hours": ("about {hours:.1f} h", "约 {hours:.1f} 小时"),
    "plan_tokens": ("about {speed:,.0f} tokens/s", "约 {speed:,.0f} token/秒"),
    "thought_column": ("thought", "思考"),
    "answer_column": ("answer", "答案"),
    "state_trained": ("trained", "已完成"),
    "state_training": ("training", "训练中"),
    "state_unfinished": ("unfinished", "未完成"),
    "state_sweep": ("sweep", "参数扫描"),
    "training_loss": ("Training loss", "训练损失"),
    "held_out_loss": ("Held-out loss", "留出集损失"),
    "token_accuracy": ("Tokens right, %", "token 准确率，%"),
    "held_out_token_accuracy": ("Held-out tokens right, %", "留出集 token 准确率，%"),
    "final_token_accuracy": ("tokens right", "token 准确率"),
    "kept_of_step": ("best, of step {step}", "最佳，第 {step} 步"),
    "kept_checkpoint": ("checkpoint kept", "保留的检查点"),
    "right_rate": ("Right, %", "正确率，%"),
    "drawn_right": ("Right of the completions drawn, %", "采样回答的正确率，%"),
    "reward": ("Reward", "奖励"),
    "differences": ("Settings that differ", "不同的设置"),
    "setting": ("setting", "设置"),
    "data_report": ("Data", "数据"),
    "rows": ("rows", "行数"),
    "what": ("what", "说明"),
    "read": ("read from {source}", "从 {source} 读取"),
    "kept": ("kept", "保留"),
    "dropped": ("dropped: {reason}", "丢弃：{reason}"),
    "held_out": ("held out", "留出"),
    "tokens": ("tokens", "token 数"),
    "trained_tokens": ("of them trained", "其中参与训练"),
    "token_mask": ("Token mask: context and trained tokens", "token 掩码：只读与参与训练的部分"),
    "show_mask": ("Show the first batch", "显示首个批次"),
    "context": ("read", "只读"),
    "trained": ("trained", "参与训练"),
    "border": ("next document", "下一文档"),
    "padding": ("padding", "填充"),
    "samples": ("Samples, those that changed first", "样例（变化的在前）"),
    "rollouts": ("Completions drawn for training, best and worst", "训练中采样的回答（最好与最差）"),
    "reference": ("reference", "参考答案"),
    "config": ("Config", "配置"),
    "data_source": ("Data source", "数据来源"),
    "sample": ("Examples (0: all)", "样本数（0 为全部）"),
    "max_steps": ("Steps (0: as many as the epochs hold)", "步数（0 为按轮数）"),
    "learning_rate": ("Learning rate", "学习率"),
    "overrides": ("Further settings, one key=value a line", "其他设置，每行一个 key=value"),
    "run_name": ("Name of the run", "运行名称"),
    "command": ("## The same on the command line", "## 等价的命令行"),
    "yaml": ("## The config", "## 配置内容"),
    "estimate": ("Memory and time", "内存与时间"),
    "start": ("Train only", "仅训练"),
    "resume": ("Resume", "继续训练"),
    "log": ("Output", "输出"),
    "no_training_here": (
        "A studio that others can reach starts no trainings: a config may name files and code of this machine.",
        "可被他人访问的页面不能启动训练：配置可以指定本机的文件与代码。",
    ),
}


_BEFORE = "text:"
"""Begins the keys in the browser: Gradio translates whatever equals one, and a run may be called `rows`."""


def label(key: str) -> Any:
    """Return a fixed text of the page, for the browser to translate."""
    if key not in TEXTS:
        raise KeyError(key)
    return gr.I18n()(_BEFORE + key)


def translations() -> gr.I18n:
    """Return all texts, for `launch`."""
    english = {_BEFORE + key: pair[0] for key, pair in TEXTS.items()}
    translated = {_BEFORE + key: pair[1] for key, pair in TEXTS.items()}
    translated["common.complete"] = "完成"  # of an upload: Gradio itself has it in English only
    return gr.I18n(en=english, zh=translated, **{"zh-CN": translated, "zh-TW": translated})


_FOLDERS = re.compile(r"(?<![\w.:/])(?:/(?:[^\s/'\":,;()]+/)+|[^\s'\"(]*\bstudio/(?:data|batch/[^/\s]+)/)(?=[^\s/])")


def _without_folders(text: str) -> str:
    """Leave of each file of this machine its name: its folder is no business of those at the page, and nobody there
    knows it."""
    return _FOLDERS.sub("", text)


class Words:
    """The texts in the language of one request."""

    def __init__(self, request: gr.Request | None) -> None:
        wanted = request.headers.get("accept-language", "") if request is not None else ""
        self.chinese = wanted.lower().startswith("zh")

    def fault(self, problem: str) -> str:
        """Say why a completion is not well-formed."""
        return (in_chinese(problem) if self.chinese else None) or problem

    def problem(self, error: ThinktuneError | str) -> str:
        """Put an error in words for a page: the fault, and the remedy. A text is one that was kept."""
        message, hint = (error, "") if isinstance(error, str) else (error.message, error.hint)
        message, hint = _without_folders(message), _without_folders(hint or "")
        if self.chinese and message:
            return chinese.told(message, hint)
        return f"{message} ({hint})" if hint else message

    def own(self, text: str) -> str:
        """Return a text of thinktune's, such as the reason for which a row was dropped."""
        text = _without_folders(text)
        return (chinese.in_chinese(text) if self.chinese else None) or text

    def purpose(self, config: Path) -> str:
        """Say what a shipped config is for."""
        return (chinese.PURPOSES.get(config.stem) if self.chinese else None) or purpose_of(config)

    def __call__(self, key: str, **values: object) -> str:
        return TEXTS[key][self.chinese].format(**values)
