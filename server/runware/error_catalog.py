"""The API's error codes: HTTP status, what each means, and what a client does about it."""

from dataclasses import dataclass

DEFAULT_STATUS = 400  # the caller's mistake


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One error code. `status` is that of a response whose only outcome is this error."""

    status: int
    meaning: str
    advice: str

    @property
    def is_transient(self) -> bool:
        """Whether the same task, sent again later, may succeed."""
        return self.status == 429 or self.status >= 500


# Codes that end in the name of a parameter, as in invalidWidth and missingPositivePrompt.
FAMILIES = {
    "invalid": ErrorKind(
        DEFAULT_STATUS,
        "a parameter's value is of another type, out of its bounds, or not among its values",
        "the error has `parameter`, `type`, `min`, `max`, `multiplier` and `allowedValues`",
    ),
    "missing": ErrorKind(DEFAULT_STATUS, "a required parameter is absent", "add it"),
}

# Source of statuses: wire specification 1.8. Clients send a task again on 429 and 5xx, so only
# faults that may pass are there.
ERRORS = {
    "arrayTooSmall": ErrorKind(
        400, "the request is an empty list, or none", "send a list with at least one task"
    ),
    "conflictTaskUUID": ErrorKind(
        400,
        "the taskUUID belongs to another task, possibly your own earlier one",
        "if you sent it before, poll with getResponse; else take a new UUID",
    ),
    "imageInputsOff": ErrorKind(
        400,
        "the task has input images, and the server has not loaded what reads them",
        "the operator sets `worker.image_inputs = true`",
    ),
    "incompatibleParameters": ErrorKind(
        400, "parameters exclude each other; `parameter` lists them", "leave one of them out"
    ),
    "inferenceError": ErrorKind(
        500,
        "the worker failed at this task, or died with it too often",
        "send it again; if it repeats, the server's log has the reason",
    ),
    "internalServerError": ErrorKind(
        500, "the server failed", "send it again; the server's log has a traceback"
    ),
    "invalidApiKey": ErrorKind(
        401, "the API key is unknown or has expired", "use a valid key: `hyimage keys list`"
    ),
    "invalidInputImage": ErrorKind(
        400, "an input image cannot be read, or is too large", "the message names image and limit"
    ),
    "invalidJSON": ErrorKind(400, "the body is not JSON", "the message has the position"),
    "invalidModel": ErrorKind(
        400, "`model` is not the served one", "`allowedValues` has it, and so has `/ready`"
    ),
    "invalidModelInput": ErrorKind(
        400, "the model cannot take the request as it is", "the message says what it takes"
    ),
    "invalidRequest": ErrorKind(
        400, "a value of the address, its query or its headers is wrong", "correct it"
    ),
    "invalidTask": ErrorKind(400, "an element of the list is no object", "send objects"),
    "missingApiKey": ErrorKind(
        401,
        "the server has keys, and the request has none",
        "send `Authorization: Bearer KEY`, or an authentication task first",
    ),
    "modelNotFound": ErrorKind(404, "there is no model of this name", "GET `/v1/models`"),
    "outOfMemory": ErrorKind(
        400,
        "the device's memory does not suffice for this task",
        "a smaller size or fewer results; for the operator [Troubleshooting](troubleshooting.md)",
    ),
    "promptTooLong": ErrorKind(
        400, "a prompt has more tokens or characters than the model takes", "shorten it"
    ),
    "quotaExceeded": ErrorKind(
        403, "the key has used up its images of the day", "wait for 00:00 UTC, or raise the quota"
    ),
    "rateLimitExceeded": ErrorKind(
        429,
        "the queue is full, the key has its most tasks running, or too many sockets are open",
        "wait for `Retry-After` (`retryAfter` on a socket), then send it again",
    ),
    "requestTooLarge": ErrorKind(
        413, "the body is larger than `server.max_body_bytes`", "send less, or raise the limit"
    ),
    "serviceUnavailable": ErrorKind(
        503,
        "the server is stopping, or task store or image store cannot be reached",
        "wait for `Retry-After`, then send it again",
    ),
    "taskCancelled": ErrorKind(400, "the task was cancelled", "nothing; that was wanted"),
    "taskExpired": ErrorKind(
        400, "the task's images have been deleted", "generate them again; `ttl` keeps them longer"
    ),
    "taskFailedOrNotFound": ErrorKind(
        404, "no task of this key has the taskUUID", "check the UUID; tasks are kept for a while"
    ),
    "unknownPath": ErrorKind(404, "no route has this address", "base URLs end in `/v1`"),
    "unsupportedAuthentication": ErrorKind(
        400, "an authentication task stands after others", "let it be the first, or a header"
    ),
    "unsupportedCheckpoint": ErrorKind(
        400, "the checkpoint has an architecture or format that cannot be loaded", "see the log"
    ),
    "unsupportedDimensions": ErrorKind(
        400, "the model does not generate this size", "`allowedValues` has the nearest sizes"
    ),
    "unsupportedMethod": ErrorKind(405, "the route takes another method", "see `/docs`"),
    "unsupportedNegativePrompt": ErrorKind(
        400, "this checkpoint takes no negative prompt", "leave it out"
    ),
    "unsupportedOperation": ErrorKind(
        400, "accountManagement has no such operation", "getDetails is the only one"
    ),
    "unsupportedParameter": ErrorKind(
        400,
        "the model, or this transport, has no such parameter",
        "leave it out; `allowedValues` lists those that there are",
    ),
    "unsupportedRewrite": ErrorKind(
        400, "this checkpoint writes no text", "leave `hunyuan.rewrite` out, or serve Instruct"
    ),
    "unsupportedSafetyCheck": ErrorKind(
        400,
        "the server has no content checker",
        "send the task without a check; for the operator [Operating](operating.md)",
    ),
    "unsupportedTaskType": ErrorKind(400, "there is no such taskType", "see `allowedValues`"),
    "uploadFailed": ErrorKind(
        400,
        "images could not be put to `uploadEndpoint`; `imageUUIDs` lists them",
        "they are stored here: fetch them with getResponse",
    ),
    "workerFailed": ErrorKind(
        503, "the checkpoint could not be loaded, or workers died too often", "see the log"
    ),
    # Faults of files; a server that meets one does not get ready, and `/ready` has the message.
    "invalidCheckpoint": ErrorKind(
        400, "files of the checkpoint are missing, cut off or misshapen", "download them again"
    ),
    "invalidTokenizer": ErrorKind(
        400, "the checkpoint's tokenizer is missing or another one", "download it again"
    ),
}

# Those of the OpenAI form alone; its other errors are the above in OpenAI's spelling.
OPENAI_ERRORS = {
    "invalid_multipart": ErrorKind(
        400, "the body of `/v1/images/edits` is no form, or has too many parts", "see the message"
    ),
    "invalid_type": ErrorKind(400, "a value, or the body, is of another type", "correct it"),
    "invalid_value": ErrorKind(400, "a value is out of its bounds", "the message has them"),
    "missing_required_parameter": ErrorKind(400, "a required parameter is absent", "add it"),
    "unknown_parameter": ErrorKind(400, "the form has no such parameter", "leave it out"),
    "unsupported": ErrorKind(400, "the route needs what this model cannot do", "see the message"),
}
