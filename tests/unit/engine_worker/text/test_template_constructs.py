"""What the published templates of the families are written with works in ours.

Each template here is the tests' own; it has the statements, filters, methods and variables by which
the named family's template does one thing, and the conversation goes through all that a request
does: parsed, shaped to what the template takes, marked, rendered in the renderer's process.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from engine_worker.text.chat_messages import parse_messages, parse_tools
from engine_worker.text.chat_template import ChatTemplate
from tests.fakes.tiny_tokenizers import byte_level_tokenizer

NOON = 1_735_732_800
"""2025-01-01 12:00 UTC."""
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'of a "city"',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Zürich, say"},
                "days": {"type": ["integer", "null"], "enum": [1, 7]},
            },
            "required": ["city"],
        },
    },
}
CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Zürich", "days": 7}'},
}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief. /no_think"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "<think>\nold\n</think>\n\none"},
    {"role": "user", "content": [{"type": "text", "text": "second"}]},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "warm"},
]


@dataclass(frozen=True)
class Construct:
    """A template, and what it makes of `TALK` and `TOOL`."""

    template: str
    expected: str
    arguments: dict[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True


LAST_QUESTION = (
    "{%- set ns = namespace(searching=true, last=messages|length - 1) %}"
    "{%- for message in messages[::-1] %}"
    "{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if ns.searching and message.role == 'user' and message.content is string"
    " and not(message.content.startswith('<tool_response>')"
    " and message.content.endswith('</tool_response>')) %}"
    "{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}{%- endfor %}"
)
TYPES = (
    "{%- macro type_of(spec, depth=0) -%}"
    "{%- if spec.type == 'object' -%}{\n"
    "{%- for name, one in spec.properties.items() -%}"
    "{{- '\n' + '  ' * (depth + 1) + name -}}"
    "{%- if name not in (spec.required or []) -%}{{- '?' -}}{%- endif -%}"
    ": {{ type_of(one, depth + 1) }}{{- ',' if not loop.last -}}{%- endfor -%}\n}"
    "{%- elif spec.enum -%}{{ spec.enum | join(' | ') }}"
    "{%- elif spec.type is iterable and spec.type is not string -%}{{ spec.type | first }}"
    "{%- else -%}{{ spec.type }}{%- endif -%}"
    "{%- endmacro -%}"
)
VISIBLE = (
    "{%- macro visible(content) -%}"
    "{%- if content is string -%}{{- content }}"
    "{%- elif content is iterable and content is not mapping -%}"
    "{%- for item in content -%}"
    "{%- if item is mapping and item.type == 'text' -%}{{- item.text }}"
    "{%- elif item is string -%}{{- item }}{%- endif -%}{%- endfor -%}"
    "{%- else -%}{{- content }}{%- endif -%}{%- endmacro -%}"
)

CONSTRUCTS: dict[str, Construct] = {
    "llama 3: date, indented tools, messages cut by a slice": Construct(
        "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
        '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}'
        '{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}'
        "{%- if not tools is defined %}{%- set tools = none %}{%- endif %}"
        "{%- if messages[0]['role'] == 'system' %}"
        "{%- set system_message = messages[0]['content']|trim %}"
        "{%- set messages = messages[1:] %}{%- endif %}"
        "{{- date_string }}|{{ system_message }}|{{ messages|length }}|"
        "{%- if tools is not none %}{%- for t in tools %}"
        "{{- t.function.parameters.required | tojson(indent=4) }}{%- endfor %}{%- endif %}",
        '01 Jan 2025|Be brief. /no_think|5|[\n    "city"\n]',
    ),
    "llama 3: a call's arguments, several calls refused": Construct(
        "{%- for message in messages %}{%- if 'tool_calls' in message %}"
        "{%- if not message.tool_calls|length == 1 %}"
        '{{- raise_exception("This model only supports single tool-calls at once!") }}{%- endif %}'
        "{%- set tool_call = message.tool_calls[0].function %}"
        """{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}"""
        '{{- tool_call.arguments | tojson }}{{- "}" }}'
        '{%- elif message.role == "tool" or message.role == "ipython" %}'
        "{%- if message.content is mapping or message.content is iterable %}"
        "{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}"
        "{%- endif %}{%- endfor %}",
        '{"name": "weather", "parameters": {"city": "Zürich", "days": 7}}"warm"',
    ),
    "qwen 3: the last question is found from behind": Construct(
        LAST_QUESTION + "{{- ns.last }}", "3"
    ),
    "qwen 3: thoughts are cut out of old answers": Construct(
        "{%- for message in messages %}{%- if message.role == 'assistant' %}"
        "{%- set content = message.content if message.content is string else '' %}"
        "{%- if message.reasoning_content is string %}"
        "{%- set reasoning_content = message.reasoning_content %}{%- else %}"
        "{%- if '</think>' in content %}"
        "{%- set reasoning_content = content.split('</think>')[0].rstrip('\\n')"
        ".split('<think>')[-1].lstrip('\\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}"
        "{%- endif %}{%- endif %}[{{ reasoning_content }}|{{ content }}]"
        "{%- endif %}{%- endfor %}",
        "[old|one][|]",
    ),
    "qwen 3: results of tools in one message of the user": Construct(
        "{%- for message in messages %}{%- if message.role == 'tool' %}"
        "{%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}<user>{%- endif %}"
        "{{- '\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
        "{%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}</user>{%- endif %}"
        "{%- endif %}{%- endfor %}",
        "<user>\n<tool_response>\nwarm\n</tool_response></user>",
    ),
    "qwen 3: reasoning is switched off": Construct(
        "{%- if add_generation_prompt %}{{- '<assistant>\n' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}"
        "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}",
        "<assistant>\n<think>\n\n</think>\n\n",
        {"enable_thinking": False},
    ),
    "qwen 3 coder: keys that no other rule shows": Construct(
        "{%- macro extra(d, handled) %}{%- if d is mapping %}"
        "{%- for key in d if key not in handled %}"
        "{%- if d[key] is mapping or (d[key] is sequence and d[key] is not string) %}"
        "{{- '\n<' ~ key ~ '>' ~ (d[key] | tojson | safe) ~ '</' ~ key ~ '>' }}"
        "{%- else %}{{- '\n<' ~ key ~ '>' ~ (d[key] | string) ~ '</' ~ key ~ '>' }}"
        "{%- endif %}{%- endfor %}{%- endif %}{%- endmacro %}"
        "{%- for tool in tools %}{%- if tool.function is defined %}"
        "{%- set tool = tool.function %}{%- endif %}"
        "{%- for name, fields in tool.parameters.properties | items %}{{ name }}"
        "{{- extra(fields, ['type', 'description']) }};{%- endfor %}{%- endfor %}",
        "city;days\n<enum>[1, 7]</enum>;",
    ),
    "qwen 3.5: neighbours of a message in its loop": Construct(
        "{%- for message in messages %}{%- if message.role == 'user' %}"
        "{{- loop.previtem.role if loop.previtem else '' }}<{{ loop.nextitem.role }}"
        "{%- endif %}{%- endfor %}",
        "system<assistantassistant<assistant",
    ),
    "gemma: roles that must take turns, texts in parts": Construct(
        "{%- if messages[0]['role'] == 'system' -%}"
        "{%- if messages[0]['content'] is string -%}"
        "{%- set first = messages[0]['content'] + '\n\n' -%}{%- else -%}"
        "{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}{%- endif -%}"
        "{%- set loop_messages = messages[1:] -%}{%- else -%}"
        "{%- set first = '' -%}{%- set loop_messages = messages -%}{%- endif -%}"
        "{%- for message in loop_messages if message.role != 'tool' -%}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('Conversation roles must alternate') }}{%- endif -%}"
        "{%- set role = 'model' if (message['role'] == 'assistant') else message['role'] -%}"
        "{{ '<' + role + '>\n' + (first if loop.first else '') }}"
        "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
        "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}"
        "{{ item['text'] | trim }}{%- endfor -%}{%- endif -%}{%- endfor -%}",
        "<user>\nBe brief. /no_think\n\nfirst<model>\n<think>\nold\n</think>\n\none<user>\nsecond"
        '<model>\nweather({"city": "Zürich", "days": 7})<user>\nResult of weather: warm',
    ),
    "gemma 4: parameters sorted, types in capitals, macros that call themselves": Construct(
        "{%- macro shown(value) -%}{%- if value is mapping -%}{{ '{' }}"
        "{%- for key, one in value | dictsort -%}{{ key }}:{{ shown(one) }}"
        "{{- ',' if not loop.last }}{%- endfor -%}{{ '}' }}"
        "{%- elif value is boolean -%}{{ 'true' if value else 'false' }}"
        "{%- elif value is string -%}'{{ value }}'"
        "{%- elif value is sequence -%}[{%- for one in value -%}{{ shown(one) }}"
        "{{- ',' if not loop.last }}{%- endfor -%}]"
        "{%- else -%}{{ value }}{%- endif -%}{%- endmacro -%}"
        "{%- for tool in tools -%}{{ tool.function.parameters.type | upper }}"
        "{{ shown(tool['function']['parameters']['properties']) }}{%- endfor -%}",
        "OBJECT{city:{description:'Zürich, say',type:'string'},"
        "days:{enum:[1,7],type:['integer','null']}}",
    ),
    "mistral: tools before the last question, keys of a tool": Construct(
        '{%- set user_messages = loop_messages | default(messages) | selectattr("role", "equalto",'
        ' "user") | list %}'
        '{%- for tool in tools %}{%- set tool = tool.function %}{{- \'{"type": "function", \' }}'
        '{%- for key, val in tool.items() if key != "return" and key != "parameters" %}'
        """{%- if val is string %}{{- '"' + key + '": ' + val | tojson }}{%- else %}"""
        "{{- '\"' + key + '\": ' + val|tojson }}{%- endif %}"
        '{%- if not loop.last %}{{- ", " }}{%- endif %}{%- endfor %}{{- "}" }}{%- endfor %}'
        "{%- for message in messages %}{%- if message == user_messages[-1] %}"
        "[last {{ user_messages | length }}]{%- endif %}{%- endfor %}",
        '{"type": "function", "name": "weather", "description": "of a \\"city\\""}[last 2]',
    ),
    "mistral: the day, and its parts": Construct(
        '{%- set today = strftime_now("%Y-%m-%d") %}'
        "{%- set year, month, day = today.split('-') %}{{ today }}|{{ day | int + 1 }}",
        "2025-01-01|2",
    ),
    "deepseek: flags of a namespace, the last part of a text": Construct(
        "{%- set ns = namespace(is_first=true, is_tool=false, system='') -%}"
        "{%- for message in messages %}{%- if message['role'] == 'system' %}"
        "{%- if ns.is_first %}{%- set ns.system = ns.system + message['content'] %}"
        "{%- set ns.is_first = false %}{%- else %}"
        "{%- set ns.system = ns.system + '\n\n' + message['content'] %}{%- endif %}{%- endif %}"
        "{%- endfor %}{{ ns.system }}"
        "{%- for message in messages %}{%- set content = message['content'] %}"
        "{%- if message['role'] == 'assistant' and content and '</think>' in content %}"
        "{%- set content = (content.split('</think>') | last).strip() %}"
        "{{ '<A>' + content + '</A>' }}{%- endif %}{%- endfor %}",
        "Be brief. /no_think<A>one</A>",
    ),
    "gpt-oss: types of parameters": Construct(
        TYPES + "{%- for tool in tools %}{{ type_of(tool.function.parameters) }}{%- endfor %}",
        "{\n  city: string,\n  days?: 1 | 7}",
    ),
    "gpt-oss: a date within a macro, and an effort": Construct(
        "{%- macro system() -%}{{- model_identity | default('A model.') + '\n' }}"
        '{{- "Current date: " + strftime_now("%Y-%m-%d") + "\n" }}'
        '{%- if reasoning_effort is not defined %}{%- set reasoning_effort = "medium" %}'
        "{%- endif %}{{- 'Reasoning: ' + reasoning_effort }}{%- endmacro -%}{{- system() }}",
        "A model.\nCurrent date: 2025-01-01\nReasoning: high",
        {"reasoning_effort": "high"},
    ),
    "granite: documents, controls, a long date": Construct(
        "{%- set system_message = strftime_now('%B %d, %Y') + '.' %}"
        "{%- if documents %}{%- set system_message = system_message + ' Docs.' %}{%- endif %}"
        "{%- if controls and 'length' in controls %}"
        "{%- set system_message = system_message + ' ' + controls['length'] %}{%- endif %}"
        "{{- system_message }}{%- for document in documents %}"
        "{{- '\n<document {\"document_id\": \"' + (document['doc_id'] | string) + '\"}>\n'"
        " + document['text'] }}{%- endfor %}",
        'January 01, 2025. Docs. short\n<document {"document_id": "4"}>\nA pipe.',
        {"documents": [{"doc_id": 4, "text": "A pipe."}], "controls": {"length": "short"}},
    ),
    "command: documents as results of a tool": Construct(
        "{% macro turns(documents) -%}[\n{% for doc in documents %}"
        '{{ \'{"id": "\' ~ loop.index0 ~ \'", "data": \' }}{{ doc | tojson }}}'
        "{% if not loop.last %},\n{% endif %}{% endfor %}\n]{%- endmacro %}{{ turns(documents) }}",
        '[\n{"id": "0", "data": {"text": "a"}},\n{"id": "1", "data": {"text": "b"}}]',
        {"documents": [{"text": "a"}, {"text": "b"}]},
    ),
    "smollm 3: a switch in the system message, what the model generates": Construct(
        '{%- if messages[0].role == "system" %}{%- set system_message = messages[0].content %}'
        '{%- if "/no_think" in system_message %}{%- set reasoning_mode = "/no_think" %}'
        '{%- elif "/think" in system_message %}{%- set reasoning_mode = "/think" %}{%- endif %}'
        '{%- set custom = system_message.replace("/no_think", "").replace("/think", "").rstrip() %}'
        "{%- endif %}{{- custom }}|{{ reasoning_mode }}"
        '{%- for message in messages %}{%- if message.role == "assistant" %}'
        "{% generation %}{{- '<' + message.content.split('</think>')[-1].strip() + '>' }}"
        "{% endgeneration %}{%- endif %}{%- endfor %}",
        "Be brief.|/no_think<one><>",
    ),
    "glm: text of parts, old thoughts, arguments as pairs": Construct(
        VISIBLE + "{%- for m in messages %}{%- if m.role == 'user' %}<u>{{ visible(m.content) }}"
        "{%- elif m.tool_calls %}{%- for tc in m.tool_calls %}{%- if tc.function %}"
        "{%- set tc = tc.function %}{%- endif %}{{ '<c>' + tc.name }}"
        "{%- set _args = tc.arguments %}{%- for k, v in _args.items() %}"
        "<k>{{ k }}<v>{{ v | tojson(ensure_ascii=False) if v is not string else v }}"
        "{%- endfor %}{%- endfor %}{%- endif %}{%- endfor %}",
        "<u>first<u>second<c>weather<k>city<v>Zürich<k>days<v>7",
    ),
    "kimi and minimax: loops that break and go on": Construct(
        "{%- for message in messages %}{%- if message.role != 'user' %}{%- continue %}{%- endif %}"
        "{{- message.content }}{%- break %}{%- endfor %}",
        "first",
    ),
    "seed-oss: a table of budgets": Construct(
        "{%- set budgets = {0: 0, 512: 128, 1024: 256} -%}{%- set ns = namespace(found=none) -%}"
        "{%- for key, value in budgets | dictsort -%}"
        "{%- if ns.found is none and key >= thinking_budget | int -%}"
        "{%- set ns.found = value -%}{%- endif -%}{%- endfor -%}"
        "{%- if ns.found is none -%}{%- set ns.found = budgets[budgets.keys() | list | last] -%}"
        "{%- endif -%}{{ ns.found }}",
        "128",
        {"thinking_budget": "300"},
    ),
    "ernie and hunyuan: arguments joined, texts formatted": Construct(
        "{%- for m in messages %}{%- for call in m.tool_calls or [] %}"
        "{{ '%s(%s)' % (call.function.name, call['function']['arguments'].keys()"
        " | list | join(', ')) }}{{ '{} {:02d}'.format(call.id | upper, 7) }}"
        "{%- endfor %}{%- endfor %}",
        "weather(city, days)ABCDEFGHI 07",
    ),
    "lfm 2: calls in Python": Construct(
        "{%- for m in messages %}{%- for call in m.tool_calls or [] %}"
        "{{ call.function.name }}({%- for k, v in call.function.arguments.items() -%}"
        "{{ k }}={{ '\"' + v + '\"' if v is string else v }}{{ ', ' if not loop.last }}"
        "{%- endfor -%}){%- endfor %}{%- endfor %}",
        'weather(city="Zürich", days=7)',
    ),
    "nemotron: numbers of words, and what is left of a text": Construct(
        "{%- set contents = messages | selectattr('content', 'string') | map(attribute='role')"
        " | unique | list %}{{ contents | join(',') }}|{{ messages[0].content[:8] }}|"
        "{{ messages[0].content.split() | length }}|{{ (messages | last).content | length }}"
        "{%- filter upper %}{{ messages[-1].role }}{%- endfilter %}",
        "system,user,assistant,tool|Be brief|3|4TOOL",
    ),
    "tools in the form of their own: order and spaces of JSON": Construct(
        "{%- for tool in tools %}{{ tool.function.parameters.required | tojson(indent=none) }}"
        "{{ tool.function.parameters.properties.days | tojson(separators=(',', ':')) }}"
        "{{ tool.function.parameters.properties.city | tojson(sort_keys=true) }}{%- endfor %}",
        '["city"]{"type":["integer","null"],"enum":[1,7]}'
        '{"description": "Zürich, say", "type": "string"}',
    ),
}


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_what_a_published_template_is_written_with_works(name: str) -> None:
    one = CONSTRUCTS[name]
    template = ChatTemplate(byte_level_tokenizer(one.template), "m")
    text = template.render(
        parse_messages(json.dumps(TALK)),
        tools=parse_tools(json.dumps([TOOL])) if "tools" in one.template else None,
        template_arguments=one.arguments,
        add_generation_prompt=one.add_generation_prompt,
        template_time=NOON,
    )
    assert str(text) == one.expected
