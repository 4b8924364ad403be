// What pages may use of turboserve.js, for TypeScript and editors. README.md beside this file says more.

/** A token, or a function that is asked for one before each connection (short-lived tokens). */
export type TokenSource = string | (() => string | null | Promise<string | null>) | null;

export type Phase =
  | "ready" | "connecting" | "queued" | "preparing" | "generating" | "stalled" | "paused" | "lost" | "taken" | "full" | "locked"
  | "ended" | "failed";

export interface PromptEntry {
  readonly id: string;
  readonly text: string;
  readonly state: "sent" | "accepted" | "applied" | "shown" | "unseen" | "refused";
  /** 0 for a cut. */
  readonly blendChunks: number;
  /** The first chunk made with it. */
  readonly seq: number | null;
  readonly rev: number | null;
  /** Media time of the first picture made with it. */
  readonly ptsMs: number | null;
  /** From `prompt()` to that picture. */
  readonly latencyMs: number | null;
}

export interface PromptHistory {
  readonly entries: readonly PromptEntry[];
  /** The prompt on the canvas. */
  readonly current: PromptEntry | null;
  /** The newest one that is still on its way. */
  readonly underWay: PromptEntry | null;
}

/** A picture on the canvas. */
export interface Picture {
  readonly seq: number;
  readonly rev: number;
  readonly ptsMs: number;
  readonly endMs: number;
}

export interface Player {
  readonly drawn: Picture | null;
  /** What a chunk plays. */
  readonly chunkMs: number;
}

export interface Mark {
  readonly kind: "moved" | "recovered" | "paused" | "restarted" | "gap";
  readonly ptsMs: number;
  readonly text: string;
}

export interface Recording {
  readonly durationMs: number;
  readonly bytes: number;
  /** It takes no more: save it by `stopRecording`. */
  readonly isFull: boolean;
}

export interface Stats {
  /** Pictures drawn per second, over the last two. */
  readonly fps: number;
  /** From `start()` to the first part of the first chunk. */
  readonly ttfcMs: number | null;
  /** From the newest prompt to the first picture made with it. */
  readonly steerMs: number | null;
  /** Received and not yet shown. */
  readonly bufferMs: number;
  /** Latency of the newest chunk at the engine. */
  readonly chunkMs: number | null;
  /** Of the newest 60, oldest first. */
  readonly chunkLatenciesMs: readonly number[];
  readonly roundTripMs: number | null;
  readonly codec: string | null;
  readonly engine: string | null;
  /** Media time shown. */
  readonly lengthMs: number;
  readonly stalls: number;
  /** played / (played + stalled) */
  readonly playRatio: number | null;
  readonly receivedBytes: number;
  readonly video: { readonly width: number; readonly height: number; readonly fps: number; readonly model: string } | null;
}

/** The header of a chunk's last part, as in the protocol. */
export interface ChunkHeader {
  readonly type: "chunk";
  readonly session: string;
  readonly seq: number;
  readonly part: number;
  readonly parts: number;
  readonly key: boolean;
  readonly frames: number;
  readonly sizes: readonly number[];
  readonly pts_ms: number;
  readonly duration_ms: number;
  readonly codec: string;
  readonly rev: number;
  readonly engine: string;
  readonly gen_ms?: number;
}

/** An error of the server, or why something was not sent to it. */
export interface Refusal {
  readonly code: string;
  readonly message: string;
  /** Of the prompt that it concerns. */
  readonly id?: string;
  readonly retry_after_ms?: number;
}

/** What the handlers of `on` get. */
export interface StreamEvents {
  /** Anything of the stream is other than before. */
  change: undefined;
  phase: { readonly phase: Phase; readonly before: Phase };
  /** A prompt changed its state. */
  prompt: { readonly entry: PromptEntry; readonly isFirst: boolean };
  /** It was drawn. */
  frame: Picture;
  /** It is complete. */
  chunk: ChunkHeader;
  size: { readonly width: number; readonly height: number };
  mark: Mark;
  /** After `reset` the new beginning is on the canvas. */
  restarted: undefined;
  refused: Refusal;
  /** The remembered session no longer exists. */
  gone: undefined;
}

export interface StreamOptions {
  /** Where to draw; its width and height are set here. */
  canvas: HTMLCanvasElement;
  /** Of the gateway, http(s) or ws(s); default: where the page came from. */
  url?: string;
  token?: TokenSource;
  /** Keep the session's key in sessionStorage, for `continue()` after a reload. */
  remember?: boolean;
}

/** A session: starts, plays on a canvas, is steered, survives lost connections. */
export class Stream {
  constructor(options: StreamOptions);

  readonly history: PromptHistory;
  readonly id: string | null;
  readonly engine: string | null;
  /** Revision of the prompts on the canvas. */
  readonly rev: number | null;
  readonly seed: number | null;
  /** What else happened, by media time. */
  readonly marks: readonly Mark[];
  /** Has this page no say in the session? */
  readonly isViewer: boolean;
  /** Does the model follow held keys? */
  readonly takesControls: boolean;
  readonly queue: { readonly position: number; readonly eta_ms: number } | null;
  /** Why it is idle or queued again, in the server's word. */
  readonly reason: string;
  /** Why the server can't take the session yet. */
  readonly waiting: string | null;
  readonly end: { readonly kind: Phase; readonly sentence: string } | null;
  /** To connect, since the last one that worked. */
  readonly attempts: number;
  readonly player: Player;
  /** Is there a session that this object follows? */
  readonly isLive: boolean;
  readonly isPaused: boolean;
  /** Can `startRecording` keep this session's video? */
  readonly isRecordable: boolean;
  readonly isRecording: boolean;
  /** Where things stand. */
  readonly phase: Phase;
  readonly stats: Stats;
  /** The one under way. */
  readonly recording: Recording | null;

  /** Call `handler` at each event of that name. Returns a function that ends it. */
  on<Name extends keyof StreamEvents>(name: Name, handler: (detail: StreamEvents[Name]) => void): () => void;
  /** See whether time alone changed the phase (a stall). Call it a few times a second. */
  refresh(): void;
  /** A new session. Throws a `RangeError` when the prompt can't be one (see `promptFault`); nothing has changed then. */
  start(options: { prompt: string; seed?: number; model?: string; leadMs?: number }): void;
  /** Go on with the session that this tab had before a reload. False if there was none. */
  continue(): boolean;
  /** Look at somebody's session without a say in it. */
  watch(options: { session: string; token?: string }): void;
  /**
   * Steer the running video, or the one that is about to begin; `blendChunks`: over which the old prompt turns into the new one,
   * 0 cuts. Throws a `RangeError` when it can't be a prompt (see `promptFault`); nothing is sent then.
   */
  prompt(text: string, options?: { blendChunks?: number }): PromptEntry;
  /** Which keys are held now. A state, not an event: it is said again with each connection. */
  control(keys: readonly string[]): void;
  setPaused(paused: boolean): void;
  /** Forget the past, keep the prompt. */
  reset(options?: { seed?: number }): void;
  /** End the session; a viewer only stops to watch. A recording is still there. */
  stop(): void;
  /** Drop connection, playback and recording without ending the session on the server. */
  leave(): void;
  /** The same, and let go of decoder, timers, listeners and handlers. Not to be used afterwards. */
  destroy(): void;
  /** The session from its beginning as an MP4 file, from the server. Rejects with a sentence. */
  download(): Promise<Blob>;
  /** What another page needs to `watch` this session, which has to begin within `ttlS`. Rejects with a sentence. */
  share(options?: { ttlS?: number }): Promise<{ session: string; token: string | null; expiresInS: number }>;
  /** Keep the video from the next chunk on, as it came. */
  startRecording(): void;
  /** The recording as an MP4 file, or null if no chunk came in the meantime. */
  stopRecording(): Blob | null;
}

export const MAX_PROMPT_CHARS: number;
/** Why a text can't be a prompt, in a sentence, or null if it can. */
export function promptFault(text: string): string | null;
/** The token in what somebody pasted, without spaces and "Bearer"; null if there is none. */
export function readToken(text: string): string | null;
/** Null if this browser can show the stream, else a sentence that says why not and what to do. */
export function whyUnsupported(): Promise<string | null>;
/** A connection to the gateway at this address, for who speaks the protocol without a `Stream`. */
export function openSocket(url: string, token?: TokenSource): Promise<WebSocket>;
/** An HTTP request to the gateway. */
export function request(
  path: string | URL,
  options?: { token?: TokenSource; method?: string; body?: object; signal?: AbortSignal },
): Promise<Response>;
